"""Names what has failed, for scripts/test and tests/vm, which have a few run again by themselves."""

import os
from pathlib import Path

import pytest


class Failures:
    """Names the tests that failed, a line each, in a file for scripts/test, which runs them once more.

    The file stays empty where that would be no judgement: where not all tests were found, or not all of them run.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: dict[str, None] = {}  # a test that fails in its call and in its teardown is one
        self.all_found = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.all_found &= not report.failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names[report.nodeid] = None

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        stopped = session.shouldfail or session.shouldstop
        if exitstatus == pytest.ExitCode.TESTS_FAILED and self.all_found and not stopped:
            self.file.write_text("".join(f"{name}\n" for name in self.names))


def register(config: pytest.Config) -> None:
    """With NETTOP_FAILED_TO=FILE in the environment; workers leave it to who started them."""
    file = os.environ.get("NETTOP_FAILED_TO")
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(Path(file)))
