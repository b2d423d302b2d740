"""Tests that measure wall time on a shared machine: marked `timing`, these alone may run twice.

The machine's load may spoil what they measure, so a failure in the call gets a second try at once, unless NETTOP_ONCE=1
(`scripts/test --repeat`).  The run lists all of them at its end, with the first try's message.  `timing` implies `pair`
(conftest.py).
"""

import os
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

PROPERTY = "timing"  # how it went, in the reports that workers send and in JUnit's XML
SAID = "first try"
AT_ONCE, SECOND, TWICE = "passed at once", "passed at the second time", "failed twice"
ONCE = "failed, and ran once"


def marked(item: pytest.Item) -> bool:
    """Marked `timing`; `timing(False)` is an exception in a module that is marked as a whole."""
    marker = item.get_closest_marker("timing")
    return marker is not None and marker.args != (False,)


class Timing:
    """Runs the tests that measure time, and keeps how each of them went."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}  # node -> how it went, and the first try's message

    @pytest.hookimpl
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not marked(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        said = _of_the_call_alone(reports)
        again = bool(said) and os.environ.get("NETTOP_ONCE", "") in ("", "0")
        if again:
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = any(report.failed for report in reports)
        how = (TWICE if again else ONCE) if failed else (SECOND if again else AT_ONCE)
        told = [(PROPERTY, how), (SAID, said)][: 1 + again]
        for report in reports:
            if not any(each.skipped for each in reports):
                report.user_properties = [*report.user_properties, *told]
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if PROPERTY in properties:
            self.found[report.nodeid] = str(properties[PROPERTY]), str(properties.get(SAID, ""))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.found:
            return
        terminalreporter.section("tests that measure time, and may run twice")
        for how in (AT_ONCE, SECOND, TWICE, ONCE):
            names = sorted(name for name, (went, _) in self.found.items() if went == how)
            if names or how != ONCE:
                terminalreporter.line(f"{how}: {len(names)}")
            for name in names:
                terminalreporter.line(f"  {name}")
                if self.found[name][1]:
                    terminalreporter.line(f"    the first time: {self.found[name][1]}")


def _of_the_call_alone(reports: list[pytest.TestReport]) -> str:
    """The call's message where it alone failed: set-up and teardown do not measure time."""
    bad = [report for report in reports if report.failed]
    if [report.when for report in bad] != ["call"]:
        return ""
    crash = getattr(bad[0].longrepr, "reprcrash", None)
    words = crash.message if crash else str(bad[0].longrepr)
    return words.splitlines()[0][:300] if words else "failed"


def register(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "timing: measures wall time on a shared machine: a `pair`, and may run twice, which the run tells (timing.py)",
    )
    config.pluginmanager.register(Timing())
