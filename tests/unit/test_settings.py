"""Command line and settings file: one Settings, the command line wins, and mistakes are named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop import settings
from nettop.core.errors import ExitCode, NettopError
from nettop.settings import OPTIONS, Settings, build, from_data, parse, read_file, to_toml

DOCS = Path(__file__).parents[2] / "docs"


def made(tmp_path: Path, toml: str, *argv: str) -> Settings:
    path = tmp_path / "nettop.toml"
    path.write_text(toml, encoding="utf-8")
    return build(parse([*argv, "-c", str(path)]), tmp_path)


def test_the_sample_is_the_defaults_to_the_letter():
    assert (DOCS / "nettop.toml").read_text(encoding="utf-8") == to_toml(Settings())


def test_every_option_of_the_contract_is_there():
    text = settings.parser().format_help()
    for word in (
        "--delay --batch --count --format --output --snapshot --record --replay --demo --probes --list-probes "
        "--new-probe --check --max-flows --scan-interval --budget --subnets --top --sort --config --print-config "
        "--log --version --help -d -b -n -o -p -s -c -V -h"
    ).split():
        assert re.search(rf"(^|[\s,]){word}\b", text), word


def test_nothing_given_is_the_defaults(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert build(parse([]), tmp_path) == Settings()


def test_the_users_own_file_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    folder = tmp_path / ".config" / "nettop"
    folder.mkdir(parents=True)
    (folder / "nettop.toml").write_text("top = 7\n")
    assert build(parse([]), tmp_path).top == 7
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert build(parse([]), tmp_path).top == 1000


def test_the_command_line_wins_over_the_file(tmp_path):
    toml = 'delay = 5\ntop = 7\nsubnets = [16, 32]\nformat = "csv"\n'
    s = made(tmp_path, toml, "-d", "0.5", "--subnets", "8,56")
    assert (s.delay, s.top, s.subnets, s.format) == (0.5, 7, (8, 56), "csv")


def test_values_of_the_file(tmp_path):
    toml = 'probes = ["flows", "irq"]\nunits = "bytes"\nnames = true\nmax_flows = 4096\n[keys]\npause = "p"\n'
    s = made(tmp_path, toml)
    assert (s.probes, s.bits, s.names, s.max_flows) == (("flows", "irq"), False, True, 4096)
    assert s.keys == {"pause": "p"}


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("delay = 0.05", "delay"),
        ("delay = 61", "delay"),
        ("delay = nan", "delay"),
        ("delay = true", "delay"),
        ('delay = "soon"', "delay"),
        ("top = 0", "top"),
        ("top = 1.5", "top"),
        ("max_flows = 63", "max_flows"),
        ("max_flows = 1048577", "max_flows"),
        ("subnets = [24]", "subnets"),
        ("subnets = [33, 48]", "subnets"),
        ("subnets = [24, 129]", "subnets"),
        ('format = "xml"', "format"),
        ('units = "nibbles"', "units"),
        ("names = 1", "names"),
        ('probes = [""]', "probes"),
        ('probes = ["Flows"]', "probes"),
        ("probes = 3", "probes"),
        ('theme = "a\\u0007b"', "theme"),
        ("history = 0", "history"),
        ('keys = "q"', "keys"),
        ("[keys]\nquit = 3", "keys"),
        ('[keys]\nzoom = ","', "zoom"),
        ('[keys]\nzoom = "a,"', "zoom"),
        ('[keys]\nzoom = "a, ,b"', "zoom"),
    ],
)
def test_a_bad_value_in_the_file_is_named(tmp_path, toml, key):
    with pytest.raises(NettopError, match=key) as caught:
        made(tmp_path, toml)
    assert caught.value.code == ExitCode.USAGE
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_key_is_named_with_the_near_ones(tmp_path):
    with pytest.raises(NettopError, match="'dealy'") as caught:
        made(tmp_path, "dealy = 1")
    assert caught.value.code == ExitCode.USAGE
    assert "delay" in caught.value.hint
    with pytest.raises(NettopError) as caught:
        made(tmp_path, "xyzzy = 1")
    assert all(o.key in caught.value.hint for o in OPTIONS)


@pytest.mark.parametrize(
    ("data", "said"), [(b"top = 3\nnonsense\n", "line 2"), (b"\xff\xfe\x00", "not TOML")]
)
def test_a_file_that_is_no_toml_says_where(tmp_path, data, said):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(NettopError, match=said) as caught:
        read_file(path, required=True)
    assert caught.value.code == ExitCode.USAGE


def test_the_file_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(NettopError, match="no such file") as caught:
        build(parse(["-c", str(tmp_path / "none.toml")]), tmp_path)
    assert caught.value.code == ExitCode.USAGE


def test_an_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(NettopError, match="directory"):
        read_file(tmp_path, required=False)


@pytest.mark.parametrize(
    "argv",
    [
        ["--delay", "0"],
        ["-d", "x"],
        ["-n", "0"],
        ["-n", "1.5"],
        ["--format", "xml"],
        ["--subnets", "24"],
        ["--top", "-1"],
        ["--sort", "RTT!"],
        ["--probes", "a,,b"],
        ["--dely", "1"],
        ["--del", "1"],  # no abbreviations: they would break when an option is added
        ["-o", "x"],
        ["--replay", ""],
        ["--log", ""],
        ["--demo", "--replay", "x"],
        ["--replay", "x", "eth0"],
        ["--check", "--demo"],
        ["--snapshot", "x", "-n", "2"],
        ["--snapshot=x", "-o", "y"],
        ["--snapshot", "x", "--record", "y"],
    ],
)
def test_a_bad_command_line_is_refused_with_a_hint(argv):
    with pytest.raises(NettopError) as caught:
        parse(argv)
    assert caught.value.code == ExitCode.USAGE
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert argv[0] in caught.value.message or not argv[0].startswith("--d")


def test_interface_filter_and_options_mix():
    a = parse(["eth0", "-b", "tcp", "port", "443", "-n", "3", "and", "net", "10.0.0.0/8"])
    assert a.words == ("eth0", "tcp", "port", "443", "and", "net", "10.0.0.0/8")
    assert (a.batch, a.count) == (True, 3)


def test_snapshot_may_go_without_a_file(tmp_path):
    assert parse(["eth0"]).snapshot is None
    assert parse(["eth0", "--snapshot"]).snapshot == ""
    assert parse(["--snapshot=x", "eth0"]).snapshot == "x"
    s = build(parse(["eth0", "--snapshot"]), tmp_path)
    assert (s.batch, s.count) == (True, 1)


def test_what_this_run_is_about_reaches_the_settings(tmp_path):
    s = build(parse(["-b", "-n", "4", "-o", "x", "--record", "y"]), tmp_path, "eth0", "tcp")
    assert (s.interface, s.filter, s.batch, s.count, s.output, s.record) == ("eth0", "tcp", True, 4, "x", "y")


names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
texts = st.text(max_size=64).filter(str.isprintable)


@given(
    st.builds(
        Settings,
        delay=st.floats(0.1, 60),
        probes=st.lists(names, unique=True, max_size=4).map(tuple),
        max_flows=st.integers(64, 1 << 20),
        scan_interval=st.just(0.0) | st.floats(0.1, 600),
        budget=st.floats(0, 10_000),
        subnets=st.tuples(st.integers(0, 32), st.integers(0, 128)),
        top=st.integers(1, 1_000_000),
        sort=st.just("") | names,
        format=st.sampled_from(settings.FORMATS),
        units=st.sampled_from(settings.UNITS),
        names=st.booleans(),
        theme=texts.filter(lambda t: t.encode("utf-8", "ignore").decode() == t),
        history=st.floats(10, 86400),
        keys=st.dictionaries(
            names,
            st.text(st.characters(codec="utf-8"), max_size=9).filter(
                lambda keys: all(map(str.strip, keys.split(",")))
            ),
            max_size=3,
        ),
    )
)
def test_what_is_printed_is_read_back(chosen):
    assert Settings(**from_data(tomllib.loads(to_toml(chosen)), Path("printed"))) == chosen
