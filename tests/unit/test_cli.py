"""The program as the shell sees it: exit codes, two-line errors, signals, and nothing read while privileged."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import record, traffic

from nettop import cli, privilege, settings
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import Frame, ProbeStatus
from nettop.netdev import names
from nettop.probes.flows import table as flows_table
from nettop.probes.stages.section import Stages, TraceEvent
from nettop.record.recording import Recorder, Recording

ROOT = Path(__file__).parents[2]
ALL_CAPABILITIES = (1 << 41) - 1


@pytest.fixture(autouse=True)
def keep_privileges(monkeypatch) -> list[str]:
    """The process of the tests keeps its rights; what would have happened, in order."""
    events: list[str] = []
    monkeypatch.setattr(privilege, "drop", lambda environment: events.append("drop"))
    monkeypatch.setattr(privilege, "effective", lambda: ALL_CAPABILITIES)
    monkeypatch.setattr(privilege, "home", lambda environment: Path("/nonexistent"))
    monkeypatch.setattr(cli, "_call_broker", lambda arguments: None)  # it forks; tests/live has the real one
    monkeypatch.setattr(names, "names", lambda: ("lo", "eth0"))
    monkeypatch.setattr(names, "current_default", lambda: "eth0")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    read = settings.read_file

    def reading(path: Path, required: bool) -> dict[str, Any]:
        events.append("read")
        return read(path, required)

    monkeypatch.setattr(settings, "read_file", reading)
    return events


class FakeLive(types.ModuleType):
    """Stands where nettop.collect.live does: no kernel is touched in these tests."""

    def __init__(self, events: list[str]) -> None:
        super().__init__("nettop.collect.live")
        self.events = events
        self.frames_made: list[Frame] = [traffic(i) for i in range(5)]
        self.settings: settings.Settings | None = None
        self.failure: Exception | None = None
        self.found = [("throughput", "tc_ingress", "tcx", True), ("stages", "-", "no such\nthing", False)]

    def start_loader(self) -> FakeLive:
        self.events.append("loader")
        return self

    def close(self) -> None:
        self.events.append("close")

    async def frames(self, handle: Any, chosen: settings.Settings, control: Any) -> AsyncIterator[Frame]:
        self.settings = chosen
        for one in self.frames_made:
            yield one
        if self.failure:
            raise self.failure

    def check(self, handle: Any, chosen: settings.Settings) -> Iterator[tuple[str, str, str, bool]]:
        yield from self.found


@pytest.fixture
def live(monkeypatch, keep_privileges) -> FakeLive:
    fake = FakeLive(keep_privileges)
    monkeypatch.setitem(sys.modules, "nettop.collect.live", fake)
    monkeypatch.setattr("nettop.collect.live", fake, raising=False)
    monkeypatch.setattr("nettop.collect.loader_client.start_loader", fake.start_loader)
    return fake


def recorded(path: Path, count: int = 3) -> Path:
    return record(path, map(traffic, range(count)))


def two_lines(capfd) -> tuple[str, str]:
    out, err = capfd.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("nettop: ")
    assert second.startswith("hint: ")
    return first, second


# --- the order of the start ---------------------------------------------------------------------------------


def test_no_file_is_read_before_privileges_are_gone(live, capfd):
    assert cli.main(["eth0", "-b", "-n", "1"]) == ExitCode.OK
    assert live.events == ["loader", "read", "close"]


def test_a_replay_gives_privileges_up_before_it_reads(keep_privileges, tmp_path, capfd):
    assert cli.main(["-b", "--replay", str(recorded(tmp_path / "x"))]) == 0
    assert keep_privileges == ["drop", "read"]


def test_printing_the_settings_gives_privileges_up_before_it_reads(keep_privileges, capfd):
    assert cli.main(["--print-config", "--top", "7"]) == 0
    assert keep_privileges == ["drop", "read"]
    assert "top = 7\n" in capfd.readouterr().out


def test_a_bad_settings_file_lets_the_loader_go(live, tmp_path, capfd):
    (tmp_path / "x.toml").write_text("dealy = 1")
    assert cli.main(["eth0", "-b", "-c", str(tmp_path / "x.toml")]) == ExitCode.USAGE
    assert live.events == ["loader", "read", "close"]
    first, second = two_lines(capfd)
    assert "dealy" in first
    assert "delay" in second


# --- exit codes ---------------------------------------------------------------------------------------------


def test_no_privilege_is_3_before_anything_else(live, monkeypatch, capfd):
    monkeypatch.setattr(privilege, "effective", lambda: 0)
    assert cli.main(["nosuch0"]) == ExitCode.PRIVILEGE
    assert "sudo nettop nosuch0" in two_lines(capfd)[1]
    assert live.events == []


@pytest.mark.parametrize(
    ("argv", "code", "said", "hint"),
    [
        (["eth0"], ExitCode.USAGE, "", "-b"),  # no terminal
        (["eth7", "-b"], ExitCode.NO_INTERFACE, "eth7", "lo, eth0"),
        (["--nonsense"], ExitCode.USAGE, "--nonsense", ""),
        (["eth0", "-b", "-p", "throughputs"], ExitCode.USAGE, "throughputs", "throughput"),
        (
            ["eth0", "-b", "-s", "retra"],
            ExitCode.USAGE,
            ": unknown column: retra",
            "did you mean retr (retransmits)?",
        ),
        (["eth0", "-b", "-s", "zzz"], ExitCode.USAGE, ": unknown column: zzz", "via (method), "),
        # A plain word would pass for a filter that nothing matches.
        (["lo", "tpc", "-b", "-n", "1"], ExitCode.USAGE, "", "plain word"),
        (["-b", "--replay", str(ROOT / "LICENSE")], ExitCode.FAILURE, "line 1", ""),
        (["-b", "--replay", "/nonexistent"], ExitCode.USAGE, "No such file", ""),
    ],
)
def test_what_is_wrong_is_said_in_two_lines(live, capfd, argv, code, said, hint):
    assert cli.main(argv) == code
    first, second = two_lines(capfd)
    assert said in first
    assert hint in second
    assert live.settings is None
    assert "loader" not in live.events or "read" in live.events


def test_a_column_to_sort_by_has_the_name_that_stands_over_it_and_the_one_in_files():
    """--sort via and --sort method are one column."""
    named = {word: c.key for c in flows_table.COLUMNS for word in (c.key, c.title, c.title.upper())}
    assert len({word.lower() for word in named}) == sum(
        len({c.key, c.title.lower()}) for c in flows_table.COLUMNS
    )
    named |= {"rtt.min_ns": "rtt.min_ns", "rtt_min_ns": "rtt.min_ns", "id": "id"}
    assert {word: cli.checked(settings.Settings(sort=word)).sort for word in named} == named


def test_a_loader_that_cannot_is_4(live, monkeypatch, capfd):
    def start() -> None:
        raise NettopError("the bcc package is missing", "apt install python3-bpfcc", ExitCode.UNSUPPORTED)

    monkeypatch.setattr("nettop.collect.loader_client.start_loader", start)
    assert cli.main(["eth0", "-b"]) == ExitCode.UNSUPPORTED
    two_lines(capfd)


def test_a_failure_while_running_is_1(live, capfd):
    live.failure = NettopError("the loader is gone", "start again")
    assert cli.main(["eth0", "-b", "--format", "csv"]) == ExitCode.FAILURE
    assert capfd.readouterr().err == "nettop: the loader is gone\nhint: start again\n"
    assert live.events[-1] == "close"


def test_a_bug_is_1_in_two_lines_and_the_log_has_the_rest(live, tmp_path, capfd):
    live.failure = ZeroDivisionError("by\nzero")
    log = tmp_path / "log"
    asked = ["eth0", "-b", "-n", "9", "-o", str(tmp_path / "o"), "--log", str(log)]
    assert cli.main(asked) == ExitCode.FAILURE
    assert "ZeroDivisionError: by zero" in two_lines(capfd)[0]
    assert "Traceback" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_are_0(flag, capfd):
    with pytest.raises(SystemExit) as caught:
        cli.main([flag])
    assert caught.value.code == 0
    assert capfd.readouterr().out.startswith(("usage: nettop", "nettop "))


def test_what_is_not_there_yet_says_so(live, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cli, "DEMO", tmp_path / "none")
    assert cli.main(["--demo", "-b"]) == ExitCode.USAGE
    two_lines(capfd)


# --- what it writes -----------------------------------------------------------------------------------------


def test_it_stops_after_as_many_frames_as_asked_for(live, capfd):
    assert cli.main(["eth0", "-b", "-n", "2", "--format", "ndjson", "--top", "5", "-d", "0.5"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(one)["time_ns"] for one in lines] == [traffic(0).time_ns, traffic(1).time_ns]
    assert (live.settings.interface, live.settings.delay, live.settings.top) == ("eth0", 0.5, 5)


def test_the_default_routes_interface_where_none_is_named(live, capfd):
    assert cli.main(["-b", "-n", "1"]) == 0
    assert live.settings.interface == "eth0"


def test_into_a_file(live, tmp_path, capfd):
    path = tmp_path / "x.csv"
    assert cli.main(["eth0", "-b", "--format", "csv", "-o", str(path)]) == 0
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes().startswith(b"time,time_ns,")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("option", [["-b", "-o"], ["-b", "--record"], ["--snapshot"]])
def test_never_over_an_existing_file(live, tmp_path, capfd, option):
    path = tmp_path / "x"
    path.write_text("precious")
    assert cli.main(["eth0", *option, str(path)]) == ExitCode.USAGE
    assert "already" in two_lines(capfd)[0]
    assert path.read_text() == "precious"


def test_a_snapshot_is_one_frame_that_replays(live, tmp_path, capfd):
    path = tmp_path / "x.json"
    assert cli.main(["eth0", "--snapshot", str(path)]) == 0
    assert capfd.readouterr() == ("", "")
    with Recording(str(path)) as recording:
        assert list(recording.frames()) == [traffic(0)]
        assert recording.header.kind == "snapshot"
        assert recording.header.interface == "eth0"


def test_what_a_snapshot_prints_without_a_file_is_what_a_replay_takes(live, tmp_path, capfd):
    assert cli.main(["eth0", "--snapshot"]) == 0
    path = tmp_path / "shown.json"
    path.write_text(capfd.readouterr().out)
    with Recording(str(path)) as recording:
        assert list(recording.frames()) == [traffic(0)]
        assert recording.header.kind == "snapshot"
    assert cli.main(["-b", "--replay", str(path), "--format", "ndjson"]) == 0
    assert json.loads(capfd.readouterr().out)["time_ns"] == traffic(0).time_ns


def tracing(*each: tuple[TraceEvent, ...]) -> list[Frame]:
    """A frame for each of these lists of events, of stages that are live."""
    live = {"stages": ProbeStatus("live")}
    return [
        replace(traffic(index), probes=live, sections={"stages": Stages(trace=events)})
        for index, events in enumerate(each)
    ]


@pytest.mark.parametrize("form", ["text", "ndjson"])
@pytest.mark.parametrize(("focus", "which"), [([], ""), (["--focus", ":443"], "of a flow with :443 ")])
def test_a_trace_that_ends_without_a_packet_says_so_and_fails(live, capfd, focus, which, form):
    """A script is not to take an empty file for a quiet interface."""
    live.frames_made = tracing((), (), ())
    asked = ["eth0", "-b", "--trace", *focus, "-n", "3", "--format", form]
    assert cli.main(asked) == ExitCode.FAILURE
    first, second = capfd.readouterr().err.splitlines()
    assert first == f"nettop: no packet {which}was traced"
    assert second.startswith("hint: ")


@pytest.mark.parametrize("focus", [[], ["--focus", ":443"]])
@pytest.mark.parametrize(("form", "shown"), [("text", " 2a  rx   (begin)"), ("ndjson", '"packet":42,')])
def test_a_trace_of_one_packet_is_a_trace(live, capfd, form, shown, focus):
    live.frames_made = tracing((), (TraceEvent(5, 7, 42, "rx", "", None, 1),), ())
    assert cli.main(["eth0", "-b", "--trace", *focus, "-n", "3", "--format", form]) == ExitCode.OK
    out, err = capfd.readouterr()
    assert shown in out
    assert err == ""


def test_recording_beside_the_output(live, tmp_path, capfd):
    path = tmp_path / "x.ndjson.gz"
    assert cli.main(["eth0", "-b", "-n", "3", "--record", str(path)]) == 0
    assert capfd.readouterr().out.count("eth0") == 3
    with Recording(str(path)) as recording:
        assert list(recording.frames()) == [traffic(i) for i in range(3)]


def test_a_recording_that_fails_is_given_up_and_the_rest_goes_on(live, tmp_path, monkeypatch, capfd):
    record, made = Recorder.record, []

    def full(self: Recorder, one: Frame) -> None:
        if len(made) == 2:
            self.close()
            raise NettopError("x: No space left on device; writing has stopped", "make room")
        made.append(one)
        record(self, one)

    monkeypatch.setattr(Recorder, "record", full)
    path = tmp_path / "x"
    assert cli.main(["eth0", "-b", "--format", "ndjson", "--record", str(path)]) == ExitCode.FAILURE
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 5
    assert err == "nettop: x: No space left on device; writing has stopped\nhint: make room\n"
    with Recording(str(path)) as recording:
        assert len(recording) == 2


def test_check_says_what_the_kernel_offers(live, capfd):
    assert cli.main(["eth0", "--check"]) == 0
    rows = [line.split(maxsplit=3) for line in capfd.readouterr().out.splitlines()[1:]]
    assert rows[:2] == [["throughput", "tc_ingress", "yes", "tcx"], ["stages", "-", "no", "no such thing"]]
    (screen,) = rows[2:]
    assert (screen[0], screen[2]) == ("screen", "yes")
    assert re.fullmatch(r"[\d.]+ k?B a frame to the terminal", screen[3])
    live.found = live.found[1:]
    assert cli.main(["eth0", "--check"]) == ExitCode.UNSUPPORTED


def test_probes_are_listed_without_privileges(monkeypatch, capfd):
    monkeypatch.setattr(privilege, "effective", lambda: 0)
    assert cli.main(["--list-probes"]) == 0
    assert "throughput" in capfd.readouterr().out


# --- replay -------------------------------------------------------------------------------------------------


def test_a_replay_writes_what_was_recorded(tmp_path, capfd):
    path = recorded(tmp_path / "x")
    assert cli.main(["-b", "--replay", str(path), "--format", "ndjson"]) == 0
    assert capfd.readouterr().out.splitlines() == path.read_text().splitlines()[1:]


def test_a_replay_that_was_cut_writes_what_is_whole_and_fails_with_the_line(tmp_path, capfd):
    path = recorded(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:-20])
    assert cli.main(["-b", "--replay", str(path), "--format", "ndjson"]) == ExitCode.FAILURE
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert "line 4" in err.splitlines()[0]
    assert len(err.splitlines()) == 2


# --- the process --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def start(*argv: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The program as a process, which is gone afterwards."""
    command = [sys.executable, "-m", "nettop", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording whose output does not fit into a pipe."""
    return recorded(tmp_path_factory.mktemp("long") / "x", 2000)


@contextlib.contextmanager
def blocked(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A batch run in the middle of its output, whose reader does not read on."""
    with start("-b", "--replay", str(path), "--format", "ndjson", stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.3)
        assert process.poll() is None
        yield process


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, 0), (signal.SIGHUP, ExitCode.HANGUP)],
)
def test_a_signal_ends_it_cleanly_even_while_nobody_reads(long, number, code):
    with blocked(long) as process:
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stderr.read() == b""


def test_a_reader_that_has_enough_ends_it_quietly(long):
    with blocked(long) as process:
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_a_full_standard_output_is_an_error(long):
    with Path("/dev/full").open("wb") as full, start("-b", "--replay", str(long), stdout=full) as process:
        err = process.stderr.read().decode()
        assert process.wait(20) == ExitCode.FAILURE
    assert "No space left" in err
    assert len(err.splitlines()) == 2


# --- words --------------------------------------------------------------------------------------------------


@pytest.fixture
def screens(monkeypatch) -> list[settings.Settings]:
    """Settings with which a screen would have been opened."""
    opened: list[settings.Settings] = []
    monkeypatch.setattr(cli, "_screen", lambda source, chosen, *more, **named: opened.append(chosen) or 0)
    monkeypatch.setattr(cli, "_need_terminal", lambda arguments: None)
    return opened


@pytest.mark.parametrize(
    ("words", "filter_text", "word"),
    [
        (["firefox-bin"], "", "firefox-bin"),
        (["203.0.113.7:443"], "", "203.0.113.7:443"),
        ([":443"], "", ":443"),
        (["tcp"], "tcp", ""),
        (["tcp", "port", "443"], "tcp port 443", ""),
        (["10.0.0.1"], "", "10.0.0.1"),
        ([], "", ""),
    ],
)
def test_a_plain_word_is_for_the_screen_and_an_expression_for_the_kernel(
    live, screens, words, filter_text, word
):
    assert cli.main(["lo", *words]) == 0
    assert [(s.filter, s.word) for s in screens] == [(filter_text, word)]


@pytest.mark.parametrize("words", [["tcp", "prot", "443"], ["port"], ["tcp", "or"], ["not"], ["fire", "fox"]])
def test_a_misspelt_expression_is_2_in_libpcaps_words(live, screens, words, capfd):
    assert cli.main(["lo", *words]) == ExitCode.USAGE
    assert screens == []
    first, second = two_lines(capfd)
    assert first.startswith("nettop: can't parse filter expression: ")
    assert "pcap-filter(7)" in second


def test_a_snapshot_of_an_interface_and_a_file_of_its_name(live, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--snapshot", "eth0", "--format", "ndjson"]) == 0
    assert live.settings.interface == "eth0"
    assert json.loads(capfd.readouterr().out)["schema"] == "nettop/1"
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["lo", "--snapshot=eth0"]) == 0
    with Recording(str(tmp_path / "eth0")) as recording:
        assert len(recording) == 1
