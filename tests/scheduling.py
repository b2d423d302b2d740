"""The order of tests that run side by side (pytest-xdist): file by file, and those that need the machine last.

A test marked `alone` waits until no other runs, one marked `pair` until only another such one does, and all others wait
for them (tests/conftest.py).  Were these tests spread over the run, the workers would wait for each other most of the
time.
"""

import itertools
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class Blocks(LoadScopeScheduling):
    """Gives the workers whole blocks, in the order of the tests: a block are neighbours of one file.

    So a fixture of a module is set up once, or twice where the module has tests that are `alone` and others.
    """

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # else the blocks with most tests come first
        self.blocks: dict[str, str] = {}

    def schedule(self) -> None:
        if not self.blocks:
            tests = next(iter(self.registered_collections.values()))
            neighbours = itertools.groupby(tests, lambda test: test.partition("::")[0])
            self.blocks = {
                test: f"{number} {file}" for number, (file, block) in enumerate(neighbours) for test in block
            }
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self.blocks[nodeid]
