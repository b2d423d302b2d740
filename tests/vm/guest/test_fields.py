"""What the programs read lies where this kernel has it: the comparison of tests/live, here."""

import ladder
from kernel_fields import fields
from lab.btf import Btf
from test_kernel_fields import btf, test_every_field_lies_where_the_kernel_has_it  # noqa: F401


def test_how_many_fields_that_were(btf: Btf) -> None:  # noqa: F811
    compared = len(fields(btf))
    assert compared > 1000
    ladder.tell("fields", {"fields": compared})
