"""The set-up scripts, with stand-ins for what they would install: no root, no network, no package manager."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from unittest.mock import Mock

import pytest
import repeat

from nettop.cli import DEMO
from nettop.core.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
MANAGERS = ("apt", "dnf", "pacman", "zypper", "apk")


Done = subprocess.CompletedProcess[str]


def call(*words: object, env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Done:
    """Run a command to its end."""
    return subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)  # type: ignore[call-overload, no-any-return]


def bash(script: str, cwd: Path, **env: str) -> Done:
    """Run a line of Bash after scripts/lib.sh of the checkout in ``cwd``."""
    return call("bash", "-c", f". scripts/lib.sh\n{script}", cwd=cwd, env=os.environ | env)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Scripts and pyproject.toml in a place of their own."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def ready(checkout: Path) -> Path:
    """A checkout whose set-up is done; its nettop tells its arguments, and its Python refuses to work."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "nettop").write_text('#!/bin/sh\necho "nettop $*"\n')
    (binaries / "nettop").chmod(0o755)
    (binaries / "python").symlink_to("/bin/false")
    (checkout / "bcc.py").touch()
    done = bash('have() { true; }; { stamp_key; echo "$root/bcc.py"; } >"$venv/.nettop-run"', checkout)
    assert done.returncode == 0, done.stderr
    return checkout


@pytest.mark.parametrize("manager", MANAGERS)
def test_every_need_has_a_package_in_every_distribution(checkout: Path, manager: str) -> None:
    found = bash(
        'for need in setpriv "${needs_run[@]}" "${needs_test[@]}"; do'
        f' package_of {manager} "$need" || echo "no $need"; done',
        checkout,
    ).stdout.splitlines()
    assert len(found) >= 10
    assert [name for name in found if name.startswith(("no ", "-")) or not name] == []


@pytest.mark.parametrize(
    ("release", "manager"),
    [
        ("ID=debian", "apt"),
        ("ID=ubuntu\nID_LIKE=debian", "apt"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', "apt"),
        ("ID=fedora", "dnf"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "dnf"),
        ("ID=arch", "pacman"),
        ("ID=manjaro\nID_LIKE=arch", "pacman"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"', "zypper"),
        ('ID="sles"\nID_LIKE="suse"', "zypper"),
        ("ID=alpine", "apk"),
        ("ID=plan9", ""),
    ],
)
def test_package_manager_by_os_release(checkout: Path, release: str, manager: str) -> None:
    (checkout / "os-release").write_text(release + "\n")
    assert bash("package_manager", checkout, NETTOP_OS_RELEASE="os-release").stdout.strip() == manager


MISSING = "have() { [[ $1 != bcc && $1 != ip && $1 != ss ]]; }; NETTOP_OS_RELEASE=os-release\n"


def test_missing_packages_without_root_are_named_with_the_command(checkout: Path) -> None:
    (checkout / "os-release").write_text("ID=debian\n")
    result = bash(MISSING + "is_root() { false; }; install_packages bcc pcap ip ss", checkout)
    assert result.returncode == 3
    wrong, hint = result.stderr.splitlines()
    assert wrong == "nettop: these packages are missing: python3-bpfcc iproute2"
    assert hint.startswith("hint: sudo ")
    assert hint.endswith("apt-get install -y --no-install-recommends python3-bpfcc iproute2")


def test_only_what_is_missing_is_installed_and_said_on_one_line(checkout: Path) -> None:
    (checkout / "os-release").write_text("ID=debian\n")
    stub = 'is_root() { true; }; apt-get() { [[ $1 != install ]] || echo "$@" >calls; }\n'
    result = bash(MISSING + stub + "install_packages bcc pcap ip ss", checkout)
    assert result.returncode == 0
    assert result.stderr == "nettop: installing python3-bpfcc iproute2 (by apt)\n"
    calls = (checkout / "calls").read_text().split()
    packages = [word for word in calls if word.startswith(("python3", "libpcap", "iproute"))]
    assert packages == ["python3-bpfcc", "iproute2"]


def test_a_package_manager_that_was_never_tried_says_so(checkout: Path) -> None:
    (checkout / "os-release").write_text("ID=arch\n")
    stub = 'is_root() { true; }; pacman() { echo "$@" >calls; }\n'
    result = bash(MISSING + stub + "install_packages bcc", checkout)
    assert (checkout / "calls").read_text().split()[-1] == "python-bcc"
    assert "untested" in result.stderr


def test_failed_installation_shows_the_manager_s_words_and_ends_with_4(checkout: Path) -> None:
    (checkout / "os-release").write_text("ID=debian\n")
    stub = "is_root() { true; }; apt-get() { echo 'E: disk full'; false; }\n"
    result = bash(MISSING + stub + "install_packages bcc; echo went on", checkout)
    assert result.returncode == 4
    assert "E: disk full" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("hint: ")
    assert "went on" not in result.stdout


def test_unknown_distribution_ends_with_4(checkout: Path) -> None:
    (checkout / "os-release").write_text("ID=plan9\n")
    result = bash(MISSING + "install_packages bcc", checkout)
    assert result.returncode == 4
    assert result.stderr.splitlines()[1].startswith("hint: install BCC")


@pytest.mark.parametrize(("module", "owns"), [("BPF = object", True), ("lattice = 1", False)])
def test_the_python_taken_is_one_whose_bcc_has_bpf(checkout: Path, module: str, owns: bool) -> None:
    (checkout / "bcc.py").write_text(f"{module}\n")
    python = checkout / "python"
    here = quote(str(checkout))
    python.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={here} exec {quote(sys.executable)} "$@"\n'
    )  # all but its -I
    python.chmod(0o755)
    found = bash("find_python", checkout, NETTOP_PYTHON=str(python)).stdout.strip()
    assert (found == str(python)) is owns


def test_second_run_starts_nettop_with_its_arguments_and_calls_no_pip(ready: Path) -> None:
    result = call(ready / "scripts/run", "lo", "-b", "tcp port 80")
    assert (result.stdout, result.stderr) == ("nettop lo -b tcp port 80\n", "")


@pytest.mark.timing
def test_second_run_is_instant(ready: Path) -> None:
    def seconds() -> float:
        start = time.monotonic()
        call(ready / "scripts/run")
        return time.monotonic() - start

    # The least of five: a busy machine may slow some of them.  0.2 s is what a user does not notice.
    assert min(seconds() for _ in range(5)) < 0.2


@pytest.mark.parametrize(
    "change",
    [
        'echo "# new" >>pyproject.toml',
        "rm bcc.py",  # the distribution's package was removed
        "touch .venv.unfinished",
        "rm .venv/.nettop-run",
        "ln -sf /nonexistent/python3.99 .venv/bin/python",  # the distribution has another Python now
    ],
)
def test_set_up_is_due_again_after(ready: Path, change: str) -> None:
    assert bash("stamped run", ready).returncode == 0
    assert bash(f"{change}\nstamped run", ready).returncode == 1


def test_set_up_of_the_tests_is_enough_to_run_but_not_the_other_way_round(ready: Path) -> None:
    assert bash("stamped test", ready).returncode == 1
    (ready / ".venv" / ".nettop-run").rename(ready / ".venv" / ".nettop-test")
    assert bash("stamped test && stamped run", ready).returncode == 0


def test_set_up_is_due_again_where_the_checkout_was_moved_to(ready: Path) -> None:
    moved = ready.with_name("moved")
    ready.rename(moved)
    ready.mkdir()
    (ready / "bcc.py").touch()
    assert bash("stamped run", moved).returncode == 1


def test_an_environment_is_kept_only_if_whole_and_ours(checkout: Path) -> None:
    """venv_fits, with an environment whose Python says yes to everything."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to("/bin/true")
    config = checkout / ".venv" / "pyvenv.cfg"
    good = (
        f"include-system-site-packages = true\nexecutable = {Path('/bin/sh').resolve()}\n"
        f"command = /bin/sh -m venv --system-site-packages {checkout}/.venv\n"
    )

    def fits() -> bool:
        return bash("venv_fits /bin/sh", checkout).returncode == 0

    config.write_text(good)
    assert fits()
    for wrong in (
        good.replace("= true", "= false"),
        good.replace("executable = ", "executable = /opt"),
        good.replace(f"{checkout}/.venv", "/elsewhere/.venv"),
        good.replace("/.venv", "/.venv2"),
        "",
    ):
        config.write_text(wrong)
        assert not fits(), wrong
    config.write_text(good)
    (checkout / ".venv.unfinished").touch()
    assert not fits(), "interrupted"


def test_pip_s_failure_leaves_the_environment_and_ends_with_4(ready: Path) -> None:
    stubs = (
        'need_python() { echo /bin/true; }; venv_fits() { true; }; as_owner() { [[ $2 != -I ]] && "$@"; }\n'
    )
    result = bash(stubs + "set_up_venv run", ready)
    assert result.returncode == 4
    assert "network" in result.stderr.splitlines()[-1]
    assert (ready / ".venv" / "bin" / "nettop").exists()
    assert not (ready / ".venv.unfinished").exists()


def test_help_of_the_tests_sets_nothing_up(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    assert "--vm" in call(checkout / "scripts/test", "--help").stdout
    assert sorted(checkout.rglob("*")) == before


@pytest.mark.parametrize(
    ("lint", "guests", "closed", "tests", "status"),
    [(0, 0, 0, 0, 0), (1, 0, 0, 0, 1), (0, 0, 0, 1, 1), (0, 0, 0, 5, 5), (0, 1, 0, 0, 1), (0, 0, 1, 0, 1)],
)
def test_ci_runs_all_even_after_a_failure_and_tells_it(
    checkout: Path, lint: int, guests: int, closed: int, tests: int, status: int
) -> None:
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    (checkout / "scripts" / "test").write_text(
        f'#!/bin/sh\nif [ "$1" = --lint ]; then echo linted; exit {lint}; fi\n'
        f'if [ "$1" = --vm ]; then echo "guests $2 $3"; exit {guests}; fi\n'
        f'echo "live=$NETTOP_REQUIRE_LIVE"; echo "7 passed"; exit {tests}\n'
    )
    (checkout / ".ci" / "closed").write_text(
        f"#!/bin/sh\nfor file; do case $file in tests/*) [ -e {quote(str(ROOT))}/$file ] || exit 9; esac; done\n"
        f'echo "closed $1"; exit {closed}\n'
    )
    sudo = checkout / "sudo"  # for those who run the unit tests without root
    sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    result = call(checkout / ".ci/run", env=os.environ | {"PATH": f"{checkout}:{os.environ['PATH']}"})
    said = ["linted", "guests -m not once", "closed scripts/test", "live=1", "7 passed"]
    assert result.stdout.splitlines() == said
    assert result.returncode == status


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_closed_home_is_one(checkout: Path) -> None:
    """What .ci/closed makes: the checkout where it was, root's to enter and nobody else's, and somebody behind sudo."""
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    look = (
        'pwd; stat -c %a:%u ..; echo "$SUDO_UID"; touch written;'
        ' setpriv --reuid 65534 --regid 65534 --clear-groups test -r "$PWD/pyproject.toml"; echo $?'
    )
    said = call(checkout / ".ci/closed", "sh", "-c", look)
    assert said.stdout.splitlines() == [str(checkout), "700:61007", "61007", "1"]
    assert (checkout / "written").exists()
    assert (checkout.parent.stat().st_uid, checkout.parent.stat().st_mode & 0o777) != (61007, 0o700)


@pytest.fixture
def tested(checkout: Path) -> Path:
    """A checkout that is set up and has this one's rules for tests, and no test yet."""
    with (checkout / "scripts" / "lib.sh").open("a") as lib:
        lib.write("set_up() { true; }\n")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    tests = checkout / "tests"
    for folder in ("live", "unit"):
        (tests / folder).mkdir(parents=True)
    (tests / "live" / "conftest.py").touch()
    (tests / "lab").symlink_to(ROOT / "tests" / "lab")
    for name in ("conftest", "repeat", "timing", "scheduling"):  # copies: they lock what lies beside them
        shutil.copy(ROOT / "tests" / f"{name}.py", tests)
    return checkout


def own_environment() -> dict[str, str]:
    """The environment without what the pytest that runs us has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NETTOP_"))}


def run_tests(tested: Path, *arguments: str, **env: str) -> Done:
    return call(tested / "scripts/test", *arguments, env=own_environment() | env)


def test_those_that_need_a_quiet_machine_run_two_at_a_time_or_one_by_one(tested: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tested / "tests" / "unit" / f"test_{name}.py").write_text(f"""\
import time
from pathlib import Path
import pytest

def log(text):
    with Path({str(tested / "log")!r}).open("a") as file:
        file.write(text + "\\n")

@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("alone", marks=[pytest.mark.alone, pytest.mark.pair]),
        pytest.param("pair", marks=pytest.mark.pair),
        "one",
        "two",
    ],
)
def test_{name}(kind):
    log(f"{{kind}} {name}")
    time.sleep(0.2)
    log(f"{{kind}} {name}")
""")
    result = run_tests(tested)
    assert result.returncode == 0, result.stdout + result.stderr
    log = (tested / "log").read_text().splitlines()
    assert len(log) == 32
    beside: set[frozenset[str]] = set()  # what ran at the same time
    running: set[str] = set()
    for line in log:
        running ^= {line}
        beside.add(frozenset(running))
    for tests in beside:
        kinds = sorted(test.split()[0] for test in tests)
        assert "alone" not in kinds or kinds == ["alone"]
        assert "pair" not in kinds or kinds in (["pair"], ["pair", "pair"])
    assert any(len(tests) == 2 and "pair" in min(tests) for tests in beside), (
        "not even two of a pair side by side"
    )
    assert any(len(tests) > 1 and not any("pair" in test for test in tests) for tests in beside)


# Each test counts its runs in a file of its name.
TIMED = """\
import pytest
from pathlib import Path

def runs(name):
    with Path(name).open("a") as file:
        file.write("x")
    return Path(name).stat().st_size

@pytest.mark.timing
def test_fast():
    runs("fast")

@pytest.mark.timing
@pytest.mark.parametrize("name", ["a b::c] d"])
def test_late(name, tmp_path):
    assert not list(tmp_path.iterdir()), "the fixture of the first time"
    (tmp_path / "used").touch()
    assert runs("late") == 2, "4 ms too late"
"""
SLOW = """
@pytest.mark.timing
def test_slow():
    runs("slow")
    assert False

@pytest.fixture
def broken():
    yield
    assert False

@pytest.mark.timing
def test_torn_down(broken):
    runs("torn_down")
"""
UNTIMED = """
def test_wrong():
    assert runs("wrong") == 2

@pytest.mark.live
def test_live():
    runs("live")
    pytest.skip("no kernel")
"""


def counts(tested: Path) -> dict[str, int]:
    names = ("fast", "late", "slow", "torn_down", "wrong", "live")
    return {name: (tested / name).stat().st_size for name in names if (tested / name).exists()}


def told(output: str) -> list[str]:
    """What a run says of the tests that measure time, without the name of the file and its blanks."""
    lines = output.splitlines()
    heads = [n for n, line in enumerate(lines) if "tests that measure time" in line]
    found = lines[heads[0] + 1 :] if heads else []
    end = next((n for n, line in enumerate(found) if line.startswith("==")), len(found))
    return [line.strip().replace("tests/unit/test_some.py::", "") for line in found[:end]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_closed_checkout_is_open_to_those_whom_tests_become(tested: Path) -> None:
    """As in a home directory or /root; by sudo, which tests do not know; from a path with a blank."""
    closed = tested.with_name("closed home")
    closed.mkdir(mode=0o700)
    checkout = tested.rename(closed / "net top")
    checkout.chmod(0o755)
    (checkout / "tests" / "unit" / "test_some.py").write_text("""\
import os, subprocess
from pathlib import Path

def test_become():
    assert not [name for name in os.environ if name.startswith("SUDO_")]
    there = Path(__file__).parents[2]
    read = subprocess.run(["cat", there / "pyproject.toml"], user=61007, group=61007, extra_groups=[], check=True)
    (there / "written").write_text(str(there))
""")
    somebody = {"SUDO_UID": "61007", "SUDO_GID": "61007", "SUDO_USER": "somebody"}
    result = run_tests(checkout, "tests/unit/test_some.py", f"{checkout}/tests/unit", **somebody)
    assert result.returncode == 0, result.stdout + result.stderr
    place = Path((checkout / "written").read_text())
    assert place.name.startswith("nettop-test.")
    assert not place.exists(), "what was mounted is left"


def test_what_measures_time_may_run_twice_and_the_run_tells(tested: Path) -> None:
    """What fails twice has failed; a teardown that fails leaves something behind: that is no matter of time."""
    (tested / "tests/unit/test_some.py").write_text(TIMED + SLOW + UNTIMED)
    result = run_tests(tested, NETTOP_REQUIRE_LIVE="1")
    assert result.returncode == 1, result.stdout + result.stderr
    assert counts(tested) == {"fast": 1, "late": 2, "slow": 2, "torn_down": 1, "wrong": 1, "live": 1}
    assert told(result.stdout) == [
        "passed at once: 1",
        "test_fast",
        "passed at the second time: 1",
        "test_late[a b::c] d]",
        "the first time: AssertionError: 4 ms too late",
        "failed twice: 1",
        "test_slow",
        "the first time: assert False",
        "failed, and ran once: 1",
        "test_torn_down",
    ]
    assert " 3 failed, 3 passed, 1 error in " in result.stdout.splitlines()[-1]


def test_what_measures_no_time_runs_once(tested: Path) -> None:
    (tested / "tests/unit/test_some.py").write_text(TIMED + UNTIMED)
    result = run_tests(tested, "-k", "wrong or live", NETTOP_REQUIRE_LIVE="1")
    assert result.returncode == 1, result.stdout + result.stderr
    assert counts(tested) == {"wrong": 1, "live": 1}
    assert " 2 failed" in result.stdout.splitlines()[-1]
    assert told(result.stdout) == []


def test_a_hunt_tells_how_often_each_test_failed(tested: Path) -> None:
    """Two rounds side by side, then one of a part into the same file; and nothing has a second try."""
    (tested / "tests/unit/test_some.py").write_text(TIMED + UNTIMED)
    beside = ("--numprocesses", "2", "--dist", "loadfile")
    hunt = run_tests(tested, "--repeat", "2", "--into", "found", "-k", "not live", *beside)
    assert hunt.returncode == 1, hunt.stdout + hunt.stderr
    assert counts(tested) == {"fast": 2, "late": 2, "wrong": 2}
    assert hunt.stdout.splitlines()[-1] == "3 tests, 6 runs, 2 failed, of 2 tests"
    part = run_tests(tested, "--repeat", "1", "--into", "found", "-k", "fast or live")
    assert part.returncode == 1, "what is in the file counts"
    rows = re.findall(r"^ +(\d+) +(\d+) +[\d.]+ s  tests/unit/test_some.py::(.*)$", part.stdout, re.MULTILINE)
    assert rows == [("1", "2", "test_late[a b::c] d]"), ("1", "2", "test_wrong"), ("0", "3", "test_fast")]
    assert "4 ms too late" in part.stdout
    assert part.stdout.splitlines()[-1] == "3 tests, 7 runs, 2 failed, of 2 tests"


@pytest.mark.parametrize(
    ("words", "ended", "status"),
    [
        (["2"], [0, 0], 0),
        (["2", "-k", "fast"], [1, 0], 1),
        (["2"], [5], 2),  # nothing was chosen
        (["1", "tests/unit/test_none.py"], [4], 2),
        (["2"], [2], 3),  # a file that cannot be collected
        ([], [], 2),
        (["0"], [], 2),
        (["-k", "fast"], [], 2),
    ],
)
def test_the_status_of_a_hunt(
    monkeypatch: pytest.MonkeyPatch, words: list[str], ended: list[int], status: int
) -> None:
    """By what pytest ended with in each round."""
    rounds = iter(ended)
    monkeypatch.setattr(repeat.subprocess, "Popen", lambda argv, env: Mock(wait=lambda: next(rounds)))
    monkeypatch.setattr(repeat.signal, "signal", Mock())
    assert repeat.main(words) == status
    assert list(rounds) == []


def test_an_interrupted_hunt_shows_what_it_has(tested: Path) -> None:
    (tested / "tests" / "unit" / "test_some.py").write_text(
        TIMED + 'def test_long():\n    runs("wrong")\n    import time\n    time.sleep(60)\n'
    )
    hunt = subprocess.Popen(
        [tested / "scripts" / "test", "--repeat", "2"],
        env=own_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with hunt:
        deadline = time.monotonic() + 60
        while not (tested / "wrong").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(hunt.pid, signal.SIGINT)  # as a terminal does
        output = hunt.stdout.read()
        assert hunt.wait(timeout=30) == 3
    assert output.splitlines()[-1] == "2 tests, 2 runs, 1 failed, of 1 tests"


GUEST_S_PYTHON = """#!/bin/sh
for word; do case $word in --junitxml=*) report=${word#*=} ;; esac; done
cat "$OUT/report" >"$report"
! grep -q failure "$report"
"""
BAD = "<failure>bad</failure>"
CASE = "<testcase classname='a' name='test_{name}'><properties>{properties}</properties>{failure}</testcase>"


@pytest.mark.parametrize(
    ("failed", "second"), [((), ()), ((), ("delay",)), (("counts",), ()), (("delay",), ("loss",))]
)
def test_a_guest_s_failures_are_failures_and_its_second_times_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: tuple[str, ...], second: tuple[str, ...]
) -> None:
    spec = importlib.util.spec_from_file_location("guests", ROOT / "tests" / "vm" / "test_guests.py")
    guests = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "guests", guests)  # where dataclasses look
    spec.loader.exec_module(guests)
    # The guest is this machine, with its own place for what is /out there.
    (tmp_path / "run.sh").write_text(
        f'#!/bin/sh\nPATH={quote(str(tmp_path))}:$PATH\necho "$3" | sed "s,/out,$OUT,g" | sh\n'
    )
    (tmp_path / "python3").write_text(GUEST_S_PYTHON)
    for name in ("run.sh", "python3"):
        (tmp_path / name).chmod(0o755)
    late = (
        "<property name='timing' value='passed at the second time'/>"
        "<property name='first try' value='4 ms too late'/>"
    )
    at_once = "<property name='timing' value='passed at once'/>"
    cases = [
        CASE.format(name=name, properties=late if name in second else at_once, failure=BAD * (name in failed))
        for name in ("counts", "delay", "loss")
    ]
    (tmp_path / "report").write_text(f"<testsuite>{''.join(cases)}</testsuite>")
    (tmp_path / "told-ladder.json").write_text('{"kernel": "6.1"}')
    monkeypatch.setattr(guests, "HERE", tmp_path)
    monkeypatch.setattr(guests.build, "program", lambda name: None)
    pair, tables = guests.GUESTS[0], {}
    with contextlib.ExitStack() as stack:
        if failed:
            stack.enter_context(pytest.raises(AssertionError, match=f"test_{failed[0]}\nbad"))
        if second:
            words = f"test_{second[0]} passed at the second time: 4 ms too late"
            stack.enter_context(pytest.warns(UserWarning, match=words))
        else:
            warnings.simplefilter("error")
        guests.test_nettop_in_a_guest(pair, tables, tmp_path)
    assert tables == ({} if failed else {pair: {"kernel": "6.1", "tests": 3}})


def install(checkout: Path, *arguments: str) -> Done:
    places = {name: str(checkout / name) for name in ("NETTOP_PREFIX", "NETTOP_BIN", "NETTOP_CACHE")}
    (checkout / "NETTOP_BIN").mkdir(exist_ok=True)
    return call(checkout / "scripts/install", *arguments, env=os.environ | places)


def test_undo_removes_what_install_made(checkout: Path) -> None:
    launcher = checkout / "NETTOP_BIN" / "nettop"
    install(checkout, "--undo")  # makes the directory
    launcher.write_text("#!/bin/sh\n# made by scripts/install of nettop\nexec true\n")
    for name in ("NETTOP_PREFIX", "NETTOP_CACHE"):
        (checkout / name).mkdir()
    (checkout / "NETTOP_PREFIX" / ".nettop").touch()
    (checkout / "NETTOP_PREFIX" / "packages").write_text("python3-bpfcc\n")
    result = install(checkout, "--undo")
    assert result.returncode == 0
    assert "python3-bpfcc" in result.stderr
    assert not launcher.exists()
    assert not (checkout / "NETTOP_PREFIX").exists()
    assert not (checkout / "NETTOP_CACHE").exists()


@pytest.mark.parametrize("place", ["NETTOP_BIN/nettop", "NETTOP_PREFIX/file"])
def test_what_is_somebody_else_s_is_neither_replaced_nor_removed(checkout: Path, place: str) -> None:
    theirs = checkout / place
    theirs.parent.mkdir()
    theirs.write_text("theirs\n")
    installed = install(checkout)
    assert installed.returncode == 1
    assert len(installed.stderr.splitlines()) == 2
    assert install(checkout, "--undo").returncode == 0
    assert theirs.read_text() == "theirs\n"


def test_install_refuses_an_unknown_option(checkout: Path) -> None:
    assert install(checkout, "--undoo").returncode == 2


def test_the_wheel_carries_every_program_and_the_demo_and_no_test(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    assert archive.read("nettop/demo.ndjson.gz") == DEMO.read_bytes()
    names = set(archive.namelist())
    programs = {f"nettop/{path.relative_to(ROOT)}" for path in (ROOT / "bpf_src").rglob("*.[ch]")}
    assert len(programs) >= 3
    # --new-probe copies an example.
    programs |= {f"nettop/{path.relative_to(ROOT)}" for path in (ROOT / "examples").glob("*/*.*")}
    assert programs <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"nettop"}


def test_bcc_is_no_dependency_since_pypi_s_is_another_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    assert [each for each in wanted if each.startswith("bcc")] == []


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_knows_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == [code.value for code in ExitCode]


@pytest.mark.parametrize(
    ("environment", "said"),
    [("SUDO_UID=1000", True), ("SUDO_UID=1000 http_proxy=http://proxy:3128", False), ("SUDO_UID=", False)],
)
def test_that_sudo_drops_the_proxy_is_said_where_it_may_be_the_cause(
    checkout: Path, environment: str, said: bool
) -> None:
    (checkout / "os-release").write_text("ID=debian\n")
    stub = f"export {environment}; is_root() {{ true; }}; apt-get() {{ false; }}\n"
    result = bash(
        "unset http_proxy https_proxy HTTPS_PROXY\n" + MISSING + stub + "install_packages bcc", checkout
    )
    assert result.returncode == 4
    assert ("sudo --preserve-env=http_proxy" in result.stderr.splitlines()[-1]) is said
