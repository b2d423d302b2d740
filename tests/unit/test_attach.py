"""What the user is told where the kernel refuses a map."""

from __future__ import annotations

import errno
import os

import pytest

from nettop import bpf
from nettop.errors import NettopError
from nettop.loader import attach
from nettop.loader.compile import MapSpec, Object
from nettop.protocol import Plan


def test_a_map_that_is_refused_says_its_size_and_what_helps(monkeypatch):
    """ENOMEM is what a memory cgroup gives."""

    def refuse(*_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(bpf, "map_create", refuse)
    made = attach.Attached(
        "flows", Object((MapSpec("flows", 9, 40, 96, 1, 0),), {}, entries={"flows": "max_flows"})
    )
    with pytest.raises(NettopError) as caught:
        attach.make_maps(made, Plan("eth0", ("flows",), 4711))
    assert caught.value.message == f"cannot make the map flows (4711 entries): {os.strerror(errno.ENOMEM)}"
    assert caught.value.hint == "--max-flows makes the flow table smaller"
