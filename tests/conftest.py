"""What all tests share: the lab on the import path, and the rules for live tests and for tests side by side.

Tests in tests/live are marked `live`: they need root, BPF and network namespaces, and are skipped, with the reason,
where one of these is missing. With NETTOP_REQUIRE_LIVE=1, as in CI, a skipped live test has failed.

Side by side (pytest-xdist, as in scripts/test), tests marked `pair` or `timing` come after all others, two at a time,
and those marked `alone` last, one by one (scheduling.py). A test marked `timing` may run twice (timing.py).
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
sys.path[:0] = [path for path in (str(TESTS), str(TESTS.parent)) if path not in sys.path]

import timing  # noqa: E402  (the path above makes these importable)
from lab import bpf, names  # noqa: E402

from nettop import privilege  # noqa: E402

# A test that wants an invoking user (sudo) sets one.
for _name in [name for name in os.environ if name.startswith("SUDO_")]:
    del os.environ[_name]

# How fast examples are made and run depends on the machine's load.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

REQUIRED = os.environ.get("NETTOP_REQUIRE_LIVE", "") not in ("", "0")
LIVE = TESTS / "live"

# Kernel: include/uapi/linux/capability.h. A container's root often lacks these.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}


def missing_for_live() -> str:
    """Why live tests cannot run here, in one line, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    for command in ("ip", "tc", "ss", "nft", "ping", "iperf3", "tcpdump", "dnsmasq", "gcc"):
        if shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            return f"needs the command {command}"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    missing = [name for name, bit in CAPABILITIES.items() if not privilege.effective() >> bit & 1]
    if missing:
        return f"needs {', '.join(missing)}"
    reason = bpf.available()
    return f"needs BPF: {reason}" if reason else ""


def pytest_configure(config: pytest.Config) -> None:
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # started with `&` by a script; child processes inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "time_limit(seconds): the longest that a live test may take (120)")
    timing.register(config)


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() == 0 and not session.config.option.collectonly:
        names.sweep()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    live = [item for item in items if item.path.is_relative_to(LIVE) or item.get_closest_marker("live")]
    reason = missing_for_live() if live else ""
    for item in live:
        item.add_marker(pytest.mark.live)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    if hasattr(config, "workerinput"):
        tests = Counter((_company(item), item.path) for item in items)
        # Of those that run two at a time the files with most come first, or the last one would run by itself.
        items.sort(key=lambda item: (_company(item), -tests[1, item.path] if _company(item) == 1 else 0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    if config.getoption("dist") != "loadfile":
        return None
    from scheduling import Blocks

    return Blocks(config, log)


def _company(item: pytest.Item) -> int:
    """What may run beside it: 0: anything that is 0, 1: one other that is 1, 2: nothing.

    `pair(False)` is an exception in a marked module.
    """
    if item.get_closest_marker("alone"):
        return 2
    pair = item.get_closest_marker("pair")
    return int(timing.marked(item) or (pair is not None and pair.args != (False,)))


def _take(places: Sequence[IO[str]], company: int) -> None:
    """Lock both places shared (0), one of them (1), or both (2)."""
    if company != 1:
        for place in places:
            fcntl.flock(place, fcntl.LOCK_EX if company else fcntl.LOCK_SH)
        return
    while True:
        for place in places:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        time.sleep(0.02)


@contextlib.contextmanager
def _turn(company: int) -> Iterator[None]:
    """A place among the tests that run now, by locks on three existing files.

    Whoever waits holds the gate, so that those who come later cannot pass.
    """
    with contextlib.ExitStack() as stack:
        files = (Path(__file__), LIVE / "conftest.py", TESTS / "scheduling.py")
        gate, *places = (stack.enter_context(path.open()) for path in files)
        fcntl.flock(gate, fcntl.LOCK_EX)
        _take(places, company)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


_place: contextlib.ExitStack | None = None  # of a file's tests that run beside others


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Side by side (pytest-xdist), each test waits for its turn.

    Those that run beside any others keep their place up to the end of their file, or they would wait before each test.
    """
    global _place
    if not hasattr(item.config, "workerinput"):
        return (yield)
    company = _company(item)
    if company:
        with _turn(company):
            return (yield)
    if _place is None:
        _place = contextlib.ExitStack()
        _place.enter_context(_turn(company))
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path or _company(nextitem):
            _place.close()
            _place = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRED and item.get_closest_marker("live") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"NETTOP_REQUIRE_LIVE is set, and this live test was skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRED and collector.path.is_relative_to(LIVE) and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"NETTOP_REQUIRE_LIVE is set, and this live module was skipped: {report.longrepr}"
    return report
