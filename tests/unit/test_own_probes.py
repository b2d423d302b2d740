"""Probes of users' own: what is refused and in which words, and that what is sound is found everywhere."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jsonschema
import numpy as np
import pytest
from fakes import frame, record, written
from lab import layouts

import nettop.probes
from nettop import cli, privilege
from nettop.analysis.baseline import Baseline
from nettop.bpf import own, syscall
from nettop.collect.budget import Ladder
from nettop.core import paths
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import SECONDS, Frame, ProbeStatus
from nettop.loader.compile import MapSpec, Object
from nettop.loader.own import permitted
from nettop.output import reference
from nettop.probes import base
from nettop.probes import own as own_probes
from nettop.probes.base import Reads, Setup, Shedding
from nettop.probes.simple import _ids
from nettop.record.recording import Recording
from nettop.record.redact import this_run
from nettop.record.schema import frame_from_json, frame_to_json

EXAMPLE = paths.examples() / "udpbuf"


class Place:
    """A directory of probes that stands for root's, and what differs from that in a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owners: dict[Path, int] = {}
        self.modes: dict[Path, int] = {}

    def add(self, name: str, source: str = "", module: str = "") -> Path:
        """A folder with these texts; the example's where none is given."""
        folder = self.path / name
        folder.mkdir(parents=True)
        for file, text in {f"{name}.c": source, "probe.py": module}.items():
            given = text or (EXAMPLE / file.replace(name, "udpbuf")).read_text().replace("udpbuf", name)
            (folder / file).write_text(given)
            (folder / file).chmod(0o644)
        folder.chmod(0o755)
        return folder

    def lstat(self, path: Path) -> object:
        """Everything is root's and closed, but for what the test has said or made."""
        mode = stat.S_IFDIR | self.modes.get(path, 0o755)
        if path.is_relative_to(self.path):
            mode = os.lstat(path).st_mode
        return SimpleNamespace(st_mode=mode, st_uid=self.owners.get(path, 0))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path / "probes.d")
    made.path.mkdir(mode=0o755)
    made.path.chmod(0o755)
    caches = (base.all_probes, base.built_in, own_probes.own_probes, own_probes.problems, own_probes._found)
    before = set(sys.modules)

    def forget() -> None:
        for cached in caches:
            cached.cache_clear()
        for name in set(sys.modules) - before:
            if name.startswith("nettop.probes."):
                del sys.modules[name]

    monkeypatch.setattr(paths, "OWN_PROBES", made.path)
    monkeypatch.setattr(nettop.probes, "__path__", [nettop.probes.__path__[0], str(made.path)])
    monkeypatch.setattr(own, "check", partial(own.check, lstat=made.lstat))
    monkeypatch.setattr(privilege, "drop", lambda environment: None)
    forget()
    yield made
    monkeypatch.undo()
    forget()


def refusal(act: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(NettopError) as caught:
        act()
    return caught.value.message, caught.value.hint


# --- whose files -----------------------------------------------------------------------------------------------------


def test_what_is_roots_alone_is_taken(place: Place) -> None:
    place.add("udpbuf")
    assert own.names() == ("udpbuf",)
    own.check("udpbuf")


@pytest.mark.parametrize("inner", ["", "udpbuf.c", "probe.py", "__pycache__/probe.cpython-311.pyc"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_refused(place: Place, inner: str, mode: int) -> None:
    path = place.add("udpbuf") / inner
    if "/" in inner:  # Python takes what it has compiled from there
        path.parent.mkdir(mode=0o755)
        path.touch(0o644)
    path.chmod(path.stat().st_mode | mode)
    message, hint = refusal(lambda: own.check("udpbuf"))
    assert message == f"others than root can write {path} ({stat.S_IMODE(path.stat().st_mode):04o})"
    assert hint == f"sudo chmod go-w {path}"


def test_a_folder_above_that_others_can_write_is_refused(place: Place) -> None:
    place.add("udpbuf")
    place.modes[place.path.parent] = 0o1777  # sticky or not
    message, hint = refusal(lambda: own.check("udpbuf"))
    assert message == f"others than root can write {place.path.parent} (1777)"
    assert hint == f"sudo chmod go-w {place.path.parent}"


@pytest.mark.parametrize("inner", ["..", "", "probe.py"])
def test_what_belongs_to_another_is_refused(place: Place, inner: str) -> None:
    path = (place.add("udpbuf") / inner).resolve()
    place.owners[path] = 54321
    message, hint = refusal(lambda: own.check("udpbuf"))
    assert message == f"{path} belongs to uid 54321, not to root"
    assert hint == f"sudo chown root: {path}"


def test_links_are_refused(place: Place, tmp_path: Path) -> None:
    folder = place.add("udpbuf")
    (tmp_path / "elsewhere.py").write_text("")
    (folder / "more.py").symlink_to(tmp_path / "elsewhere.py")
    message, hint = refusal(lambda: own.check("udpbuf"))
    assert (message, hint) == (f"{folder / 'more.py'} is a symbolic link", "put there what it points to")
    (place.path / "linked").symlink_to(folder)
    assert refusal(lambda: own.check("linked"))[0] == f"{place.path / 'linked'} is a symbolic link"


def test_what_is_neither_file_nor_directory_is_refused(place: Place) -> None:
    folder = place.add("udpbuf")
    os.mkfifo(folder / "pipe", 0o600)
    assert refusal(lambda: own.check("udpbuf"))[0] == f"{folder / 'pipe'} is neither a file nor a directory"


@pytest.mark.parametrize("missing", ["udpbuf.c", "probe.py"])
def test_what_is_missing_is_said(place: Place, missing: str) -> None:
    path = place.add("udpbuf") / missing
    path.unlink()
    assert refusal(lambda: own.check("udpbuf"))[0] == f"{path} is missing"


def test_what_is_refused_is_not_imported(place: Place) -> None:
    folder = place.add("marked", module="import sys\nsys.modules['nettop.probes.imported'] = sys\n")
    (folder / "probe.py").chmod(0o666)
    assert "others than root can write" in base.all_probes()["marked"].problem
    assert "nettop.probes.imported" not in sys.modules
    assert "nettop.probes.marked" not in sys.modules


# --- what is broken takes nothing else down --------------------------------------------------------------------------

DECLARED = (EXAMPLE / "probe.py").read_text()
RENAMED = DECLARED.replace('"udpbuf"', '"broken"')
REPLACED = RENAMED + "from dataclasses import replace\nPROBE = replace(PROBE, {})\n"
BROKEN = {
    "import no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    "PROBE = (": "SyntaxError: '(' was never closed",
    "raise SystemExit(3)": "SystemExit: 3",
    "nothing = 1": "there is no PROBE of type Probe in it",
    "PROBE = 1": "there is no PROBE of type Probe in it",
    DECLARED: "PROBE is called udpbuf",
    RENAMED.replace('sort="fill"', 'sort="full"'): "'full' is no column to sort by",
    REPLACED.format("panes=()"): "it has no pane of its name",
    REPLACED.format("traces=True"): "are for built-in probes",
    "from nettop.core.frame import Section\n"
    + REPLACED.format("section=Section"): "its section has another place in the frame",
}


@pytest.mark.parametrize("module", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_module_says_so_and_the_others_work(
    place: Place, module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place.add("broken", module=module)
    place.add("udpbuf")
    probes = base.all_probes()
    assert BROKEN[module] in probes["broken"].problem
    assert "\n" not in probes["broken"].problem
    assert not probes["udpbuf"].problem
    assert set(base.built_in()) < set(probes)
    assert own_probes.unusable() == (f"probe broken cannot be used: {probes['broken'].problem}",)
    assert cli.main(["--list-probes"]) == 0
    lines = capfd.readouterr().out.splitlines()
    (said,) = (line for line in lines if line.startswith("broken"))
    assert said.split(maxsplit=1)[1] == f"cannot be used: {probes['broken'].problem}"
    assert any(line.startswith("udpbuf ") for line in lines)


@pytest.mark.parametrize("name", ["flows", "health", "rtt", "verdict", "base"])
def test_a_name_that_is_taken_is_refused(place: Place, name: str) -> None:
    place.add(name)
    assert own_probes.problems()[name].startswith(f"the name {name} is taken")
    assert base.all_probes()["flows"] is base.built_in()["flows"]


@pytest.mark.parametrize("name", ["Capital", "with-hyphen", "1st", "x" * 33])
def test_a_folder_with_a_bad_name_is_said(place: Place, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    place.add(name)
    assert name not in base.all_probes()
    assert cli.main(["--list-probes"]) == 0
    text = capfd.readouterr().out
    assert f"{place.path / name} has no name for a probe (name it with small letters, figures and _)" in text


def test_files_beside_the_folders_and_hidden_ones_are_left_alone(place: Place) -> None:
    (place.path / "README").write_text("")
    (place.path / ".git").mkdir()
    assert own.names() == ()


def test_a_directory_that_is_closed_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", Mock(side_effect=PermissionError(13, "Permission denied")))
    (line,) = own_probes.unusable()
    assert f"{place.path}: Permission denied (sudo chmod -R go+rX {place.path}" in line


# --- which programs --------------------------------------------------------------------------------------------------


def test_hooks_are_in_the_names_of_functions() -> None:
    names = ("ready__kprobe__sock_def_readable", "helper", "ready__tp_btf__sk_data_ready", "__dev_x__fentry")
    first, second = own.hooks_of(names)
    assert [(c.via, c.attachments[0].program, c.attachments[0].target) for c in first.candidates] == [
        ("tp_btf", "ready__tp_btf__sk_data_ready", "sk_data_ready"),
        ("kprobe", "ready__kprobe__sock_def_readable", "sock_def_readable"),
    ]
    assert (first.name, second.name) == ("ready", "__dev_x")
    assert (second.candidates[0].via, second.candidates[0].attachments[0].target) == ("fentry", "__dev_x")
    assert (first.required, first.flag) == (False, 0)


@pytest.mark.parametrize(
    "program", ["in__tcx__ingress", "in__clsact__ingress", "x__netfilter", "x__prog_run__y"]
)
def test_what_could_change_traffic_is_refused(program: str) -> None:
    """By the loader, from what was compiled."""
    message, hint = refusal(lambda: permitted("x", compiled({program: b""})))
    via = program.split("__")[1]
    assert message == f"{program}: a program of {via} could change traffic, and a user's own probe must not"
    assert hint == "watch it by tp_btf, raw_tracepoint, fentry, kprobe"


def call(number: int, kind: int = 0) -> bytes:
    return struct.pack("<BBhi", 0x85, kind << 4, 0, number)


EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def compiled(programs: dict[str, bytes], *maps: MapSpec) -> Object:
    return Object(maps, programs)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (36, "bpf_probe_write_user"),
        (58, "bpf_override_return"),
        (109, "bpf_send_signal"),
        (117, "bpf_send_signal_thread"),
        (9, "helper 9"),  # bpf_skb_store_bytes
        (999, "helper 999"),  # of a later kernel
    ],
)
def test_a_helper_that_changes_something_is_refused_by_name(number: int, name: str) -> None:
    made = compiled({"x__tp_btf": call(5) + EXIT, "inner": call(1) + call(number) + EXIT})
    message, _ = refusal(lambda: permitted("x", made))
    assert message == f"inner calls {name}, and a user's own probe may only look"


def test_functions_of_the_kernel_are_refused() -> None:
    made = compiled({"x__tp_btf": call(4711, kind=2) + EXIT})
    assert refusal(lambda: permitted("x", made))[0].startswith("x__tp_btf calls a function of the kernel")


def test_calls_within_the_program_are_not_taken_for_helpers() -> None:
    """Nor is the second half of an instruction of 16 bytes, or a number in another one."""
    wide = struct.pack("<BBhi", 0x18, 0, 0, 36) + struct.pack("<BBhi", 0, 0, 0, 36)
    number = struct.pack("<BBhi", 0xB7, 0, 0, 36)
    permitted("x", compiled({"x__tp_btf": call(36, kind=1) + wide + number + EXIT}))


def test_without_a_program_for_a_hook_it_is_nothing() -> None:
    assert refusal(lambda: permitted("x", compiled({"count": EXIT})))[0] == "x.c has no program for any hook"


def test_maps_are_such_as_nettop_reads() -> None:
    good = {"x__tp_btf": EXIT}
    device_map = MapSpec("m", 14, 4, 4, 1, 0)
    assert "type that nettop does not read" in refusal(lambda: permitted("x", compiled(good, device_map)))[0]
    for lacking in ('["config", [["ifindex", "unsigned int"]], "struct"]', '"unsigned int"', ""):
        config = MapSpec("config", syscall.MapType.ARRAY, 4, 4, 1, 0, value_layout=lacking)
        assert refusal(lambda c=config: permitted("x", compiled(good, c)))[0] == "the map config is nettop's"
    kinds = {"state": 2, "my_state": 6, "rows_state": 1, "rows": 2}
    held = [MapSpec(name, kind, 4, 8, 1, 0) for name, kind in kinds.items()]
    made = permitted("x", replace(compiled(good, *held), entries=("rows",)))
    assert (made.state, made.entries) == (("state", "my_state"), ())


# --- found everywhere ------------------------------------------------------------------------------------------------


def section_of(place: Place, *readings: list[tuple[int, int, int, str]]) -> list[object]:
    """Sections of the example from what the map held: cookie, used, drops, process."""
    if not (place.path / "udpbuf").exists():
        place.add("udpbuf")
    probe = base.all_probes()["udpbuf"]
    fold = probe.fold(Setup("lo", 1))
    layout = layouts.of("udpbuf")["sockets"]
    sections = []
    for entries in readings:
        keys, values = np.zeros(len(entries), layout.key), np.zeros(len(entries), layout.value)
        for index, (cookie, used, drops, process) in enumerate(entries):
            keys[index] = cookie
            values[index]["used"], values[index]["size"] = used, 40_000
            values[index]["drops"], values[index]["process"] = drops, process.encode()
            values[index]["port"], values[index]["pid"] = 5353, 7
        sections.append(fold(Reads(0, 1, {"sockets": (keys, values)}, {})).section)
    return sections


def with_section(section: object, index: int = 0) -> Frame:
    return frame(index, probes={"udpbuf": ProbeStatus("live")}, sections={"udpbuf": section})


def test_the_map_has_the_columns_that_are_declared(place: Place) -> None:
    place.add("udpbuf")
    (layout,) = base.all_probes()["udpbuf"].maps
    assert (layout.name, layout.read, layout.keys) == ("sockets", "hash", "")  # a number is a key by itself
    assert layout.fields == "used size peak pid drops port process"


def test_counts_are_of_the_interval_and_in_all(place: Place) -> None:
    first, second, third = section_of(
        place,
        [(1, 100, 7, "a"), (2, 200, 1, "b")],
        [(2, 100, 3, "b"), (1, 100, 7, "a"), (3, 0, 4, "c")],
        [(2, 100, 1, "b")],
    )
    assert first.rows["drops"].tolist() == [7, 1]
    assert second.rows["drops"].tolist() == [2, 0, 4]
    assert second.rows["drops_total"].tolist() == [3, 7, 4]
    assert third.rows["drops"].tolist() == [1]  # evicted meanwhile, and counted anew
    assert second.rows["id"].tolist() == [2, 1, 3]


def test_a_key_that_is_no_small_number_has_an_id_that_json_takes() -> None:
    keys = np.array([(1 << 63, 2), (1 << 63, 3)], [("a", "u8"), ("b", "u8")])
    found = _ids(keys)
    assert len(set(found)) == 2
    assert all(0 < i < 1 << 53 for i in found)
    assert found == _ids(keys.copy())


def test_it_is_in_text_ndjson_and_csv_sorted_by_any_column(place: Place) -> None:
    (section,) = section_of(place, [(1, 100, 7, "slow"), (2, 30_000, 1, "b")])
    shown = with_section(section)
    lines = written("text", shown, plain=True).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("UDP buffers"))
    assert lines[at + 1].split() == "cookie fill used size peak pid drops port process".split()
    assert lines[at + 2].split() == ["2", "75%", "30.0kB", "40.0kB", "0B", "7", "1", "5353", "b"]
    by_drops = written("text", shown, plain=True, sort="drops").splitlines()
    assert [line.split()[0] for line in by_drops[at + 2 : at + 4]] == ["1", "2"]
    for key in ("fill", "drops_total", "process", "cookie"):
        assert cli.checked(cli.Settings(sort=key)).sort == key
    data = json.loads(written("ndjson", shown, sort="drops"))
    assert [row["cookie"] for row in data["udpbuf"]["sockets"]] == [1, 2]
    assert data["udpbuf"]["sockets"][1] == {
        "id": 2, "cookie": 2, "fill": 0.75, "used": 30_000, "size": 40_000, "peak": 0, "pid": 7, "drops": 1,
        "drops_total": 1, "port": 5353, "process": "b",
    }  # fmt: skip
    titles, first, *_ = written("csv", shown).splitlines()
    assert titles.endswith("age_ns,id,cookie,fill,used,size,peak,pid,drops,drops_total,port,process")
    assert first.endswith(",0,2,2,0.75,30000,40000,0,7,1,1,5353,b")


def test_it_is_in_the_schema_and_not_in_the_projects_own(place: Place, tmp_path: Path) -> None:
    (section,) = section_of(place, [(1, 100, 7, "slow")])
    schema = reference.frame_schema()
    assert "of size" in str(schema["properties"]["udpbuf"])
    shed = schema["properties"]["health"]["properties"]["shed"]["properties"]
    assert "udpbuf" in shed[SECONDS]["description"]
    data = frame_to_json(with_section(section), 10, "")
    jsonschema.validate(data, schema)
    data["udpbuf"]["sockets"][0]["used"] = "much"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)
    shutil.copy(paths.PACKAGE.parent / "docs" / "frame.md", tmp_path)
    reference.write(tmp_path)
    assert "udpbuf" not in (tmp_path / "frame.schema.json").read_text() + (tmp_path / "frame.md").read_text()


def test_it_is_recorded_and_replayed(place: Place, tmp_path: Path) -> None:
    sections = section_of(place, [(1, 100, 7, "slow")], [(1, 300, 9, "slow")])
    path = record(tmp_path / "x.ndjson", (with_section(each, index) for index, each in enumerate(sections)))
    with Recording(str(path)) as recording:
        replayed = recording.frame(1).sections["udpbuf"]
    assert replayed.rows.tolist() == sections[1].rows.tolist()
    assert replayed.rows.dtype == sections[1].rows.dtype


def test_what_makes_no_sense_in_a_recording_is_refused(place: Place) -> None:
    (section,) = section_of(place, [(1, 100, 7, "slow")])
    for wrong in (1, [1], [{"used": -1}], [{"process": 1}]):
        data = frame_to_json(with_section(section), 10, "") | {"udpbuf": {"sockets": wrong}}
        with pytest.raises(Exception, match="udpbuf"):
            frame_from_json(data)


def test_texts_are_redacted_unless_declared_harmless(place: Place) -> None:
    place.add("udpbuf", module=DECLARED.replace(', privacy="name"', ""))
    (section,) = section_of(place, [(1, 100, 7, "secretd")])
    hidden = frame_to_json(this_run().frame(with_section(section)), 10, "")
    (row,) = hidden["udpbuf"]["sockets"]
    assert row["process"].startswith("hidden-")
    assert "secretd" not in json.dumps(hidden)
    assert (row["used"], row["port"]) == (100, 5353)


def test_totals_start_anew(place: Place) -> None:
    then, now = section_of(place, [(1, 100, 7, "a")], [(1, 100, 9, "a"), (2, 1, 5, "b")])
    since = Baseline(with_section(then))(with_section(now, 1)).sections["udpbuf"]
    assert since.rows["drops_total"].tolist() == [2, 5]
    assert since.rows["drops"].tolist() == [2, 5]


def test_the_budget_can_shed_it(place: Place) -> None:
    place.add("udpbuf")
    probe = base.all_probes()["udpbuf"]
    assert probe.duty_cycled
    assert [step[SECONDS] for step in Ladder([probe]).steps][:3] == [1, 4, 8]
    assert "udpbuf" in base.shed_words({SECONDS: 4})[0]


def test_its_pane_has_a_number_of_its_own(place: Place) -> None:
    place.add("udpbuf")
    place.add("another")
    numbers = [pane.number for probe in base.all_probes().values() for pane in probe.panes]
    assert len(set(numbers)) == len(numbers)
    assert [p.panes[0].number for n, p in base.all_probes().items() if n in ("another", "udpbuf")] == [6, 7]


def test_a_fold_that_cannot_be_made_is_a_failure_of_the_probe_alone(place: Place) -> None:
    place.add("udpbuf", module=DECLARED + "PROBE.__dict__['fold'] = lambda setup: 1 / 0\n")
    fold = base.all_probes()["udpbuf"].fold(Setup("lo", 1))
    with pytest.raises(ZeroDivisionError):
        fold(Reads(0, 1, {}, {}))


def test_knobs_of_the_shared_config_are_not_theirs(place: Place) -> None:
    place.add("udpbuf")
    probe = base.all_probes()["udpbuf"]
    knobs = replace(probe, sheds=(Shedding("x_one_in", "x", "x 1:{}", (2,), knob="focus"),))
    assert "are for built-in probes" in refusal(lambda: own_probes._checked("udpbuf", knobs))[0]


# --- the example, and what --new-probe makes of it -------------------------------------------------------------------


def test_the_example_has_80_lines_at_most() -> None:
    assert sum(len((EXAMPLE / name).read_text().splitlines()) for name in ("udpbuf.c", "probe.py")) <= 80


def test_a_new_probe_is_the_example_by_another_name(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(privilege, "effective", lambda: 0)
    assert cli.main(["--new-probe", "mine"]) == 0
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "mine.c",
        "probe.py",
        "mine.md",
        "test_mine.py",
    }
    text = capfd.readouterr().out
    assert f"sudo install -o root -g root -m 644 ./mine/* {place.path}/mine" in text
    assert "sudo nettop -p mine" in text
    shutil.copytree(tmp_path / "mine", place.path / "mine")
    assert not base.all_probes()["mine"].problem


def test_a_new_probe_overwrites_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert cli.main(["--new-probe", "mine"]) == ExitCode.USAGE
    assert "mine is there already" in capfd.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []
    for name, why in {"flows": "taken", "health": "taken", "no-name": "no name", "": "no name"}.items():
        assert cli.main(["--new-probe", name]) == ExitCode.USAGE
        assert f"is {why}" in capfd.readouterr().err
