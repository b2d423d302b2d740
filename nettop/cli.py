"""The program: what the command line asks for, in the order that privileges demand.

Started by sudo, this process has root's rights only until the loader runs.  So the command line alone is
parsed first; every file is opened after the rights are gone, as the user, or by the broker where root has none but
itself to be (broker.py).  Heavy imports wait for their need.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettop import privilege, settings
from nettop.core import units
from nettop.core.charset import draws_unicode
from nettop.core.errors import ExitCode, NettopError
from nettop.core.paths import OWN_PROBES, PACKAGE, version
from nettop.netdev import names
from nettop.record import files
from nettop.settings import Arguments, Control, Settings, one_line, usage_error

if TYPE_CHECKING:
    from nettop.core.frame import Frame
    from nettop.output import Writer
    from nettop.record.recording import Replay
    from nettop.record.redact import Redactor

DEMO = PACKAGE / "demo.ndjson.gz"
_log = logging.getLogger("nettop")
_log.addHandler(logging.NullHandler())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code for the shell.  Errors are two lines on standard error."""
    _occupy_standard_streams()
    try:
        given = names.apart(sys.argv[1:] if argv is None else argv, names.names())
        return _run(settings.parse(given))
    except NettopError as error:
        _print_error(error.lines())
        return error.code
    except BrokenPipeError:  # `nettop -b | head`: the reader has closed the pipe
        _silence(1)
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        _log.info("unexpected", exc_info=True)  # a file has it; standard error has the two lines
        _print_error(
            f"nettop: {type(error).__name__}: {one_line(str(error))[:500]}\n"
            "hint: this is a bug; --log FILE keeps the details of it for a report"
        )
        return ExitCode.FAILURE
    finally:
        try:
            sys.stderr.flush()
        except OSError:  # its terminal was closed
            _silence(2)


def _occupy_standard_streams() -> None:
    """Where one is closed, what is opened next would take its number, and get what is meant for the user.

    Each is opened so that using it fails as it would have.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _print_error(text: str) -> None:
    """Write lines to standard error, without control characters: names of files and hosts in them are untrusted."""
    sys.stderr.write("\n".join(units.clean(line, 4096) for line in text.splitlines()) + "\n")


def _print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _silence(fd: int) -> None:
    """Nothing is left that the interpreter could try, and fail, to write when it ends: its exit code would be 120."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def _run(arguments: Arguments) -> int:
    if arguments.new_probe is not None:
        return _new_probe(arguments)
    if arguments.list_probes:
        return _list_probes()
    if arguments.print_config:
        _print_line(settings.to_toml(_settings(arguments, _become_user(arguments))).removesuffix("\n"))
        return ExitCode.OK
    if arguments.replay is not None or arguments.demo:
        return _replay(arguments)
    return _live(arguments)


def _become_user(arguments: Arguments) -> Path:
    """Give up what sudo gave us, where nothing needs it.  The caller's home directory."""
    home = _call_broker(arguments)
    if os.geteuid() == 0 or privilege.effective():
        privilege.drop(os.environ)
    return home or privilege.home(os.environ)


def _call_broker(arguments: Arguments) -> Path | None:
    """Where root calls, this process will be nobody: fork the broker that opens root's files.  Root's home then."""
    if os.geteuid() != 0 or privilege.invoking_user(os.environ):
        return None
    from nettop import broker

    a, home = arguments, privilege.home(os.environ)
    config = Path(a.config) if a.config else settings.default_path(home)
    files.open_by(broker.start(filter(None, (str(config), a.log, a.output, a.record, a.snapshot, a.replay))))
    return home


def _settings(arguments: Arguments, home: Path, interface: str = "", filter_text: str = "") -> Settings:
    """The settings in effect; as the user, so after privileges are given up."""
    _start_log(arguments)
    return checked(settings.build(arguments, home, interface, filter_text))


def _start_log(arguments: Arguments) -> None:
    handler: logging.Handler
    if arguments.log is not None:
        try:
            fd = files.opened("log", arguments.log)
        except OSError as error:
            raise usage_error(
                f"{arguments.log}: {error.strerror}", "name a file where you may write"
            ) from None
        handler = logging.StreamHandler(os.fdopen(fd, "w", encoding="utf-8"))
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    elif arguments.batch or arguments.check or arguments.snapshot is not None:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter("nettop: %(message)s"))
    else:  # nothing but the screen writes to the terminal
        handler = logging.NullHandler()
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def checked(chosen: Settings) -> Settings:
    """With the names of probes and columns, which settings can't know.  Raises NettopError (2)."""
    if chosen.focus:
        from nettop.analysis.verdict.flow import check_end

        try:
            check_end(chosen.focus)
        except ValueError as error:
            hint = "as 10.0.0.2:443, :443, [2001:db8::1]:443, or LOCAL-REMOTE of both"
            raise usage_error(f"--focus {chosen.focus}: {error}", hint) from None
    if not (chosen.probes or chosen.sort or chosen.trace):
        return chosen
    from nettop.probes.base import all_probes

    probes = all_probes()
    for name in chosen.probes:
        _known("probe", name, {each: each for each in probes})
    tracing = [name for name, probe in probes.items() if probe.traces]
    if chosen.trace and chosen.probes and not set(chosen.probes) & set(tracing):
        needed = f"--trace needs the probe {' or '.join(tracing)}"
        raise usage_error(needed, "name it among --probes as well")
    if not chosen.sort:
        return chosen
    tables = [pane.table for p in probes.values() for pane in p.panes if pane.table]
    # As it stands over the column, as awk and files have it; and every field of a row, as the frame and CSV have it.
    titles = {word: c for t in tables for c in t.columns for word in (c.title.lower(), c.key)}
    fields = {word: name for t in tables for name in t.fields for word in (name, name.replace(".", "_"))}
    if chosen.sort.lower() in fields and chosen.sort.lower() not in titles:
        return replace(chosen, sort=fields[chosen.sort.lower()])
    said = {w: c.key if c.title == c.key else f"{c.title} ({c.key})" for w, c in titles.items()}
    near = said | {word: word for word in fields if word not in said}
    return replace(chosen, sort=titles[_known("column", chosen.sort.lower(), said, near)].key)


def focuses(chosen: Settings) -> bool:
    """Whether a probe runs whose rows can be taken into focus."""
    from nettop.probes.base import all_probes

    return any(p.focuses for name, p in all_probes().items() if not chosen.probes or name in chosen.probes)


def _known(kind: str, name: str, said: Mapping[str, str], close: Mapping[str, str] | None = None) -> str:
    """The name, if it is one; ``said`` and ``close`` as for settings.meant."""
    if name not in said:
        raise usage_error(f"unknown {kind}: {name}", settings.meant(name, said, close))
    return name


def _list_probes() -> int:
    if OWN_PROBES.exists() and (os.geteuid() == 0 or privilege.effective()):
        privilege.drop(os.environ)  # their modules are imported
    from nettop.probes.base import all_probes
    from nettop.probes.own import problems

    probes = all_probes()
    others = {
        name: text for name, text in problems().items() if name not in probes or not probes[name].problem
    }
    width = max(map(len, (*probes, *others)), default=0)
    for name, probe in probes.items():
        _print_line(f"{name:{width}}  {units.clean(probe.summary, 1000)}")
        if probe.hooks:
            _print_line(f"{'':{width}}  hooks: {', '.join(hook.name for hook in probe.hooks)}")
    for name, text in others.items():
        _print_line(f"{name:{width}}  cannot be used: {text}")
    return ExitCode.OK


def _new_probe(arguments: Arguments) -> int:
    """Write a probe into the current directory, as the calling user, and say what to do with it."""
    if privilege.invoking_user(os.environ):
        privilege.drop(os.environ)
    from nettop.probes.new import write

    _print_line(write(arguments.new_probe or "", Path.cwd()))
    return ExitCode.OK


# --- a recording --------------------------------------------------------------------------------------------


def _replay(arguments: Arguments) -> int:
    path = arguments.replay
    if path is None:
        if not DEMO.exists():
            raise usage_error("this installation has no demo recording", "--replay FILE plays your own")
        path = str(DEMO)
    _need_terminal(arguments)
    chosen = _settings(arguments, _become_user(arguments))
    from nettop.record.recording import Recording, Replay
    from nettop.record.redact import this_run

    with Recording(path, hide=this_run() if chosen.redact else None) as recording:
        if chosen.batch:
            return _batch(Replay(recording, speed=float("inf")).frames(), chosen, arguments)
        replay = Replay(recording, hold=True)
        if recording.header.kind == "snapshot":  # what was seen, and not how it came to be
            replay.step(len(recording))
        return _screen(replay.frames(), chosen, problem=recording.problem, replay=replay)


# --- the running kernel -------------------------------------------------------------------------------------


def _live(arguments: Arguments) -> int:
    _need_capabilities(arguments)
    _need_terminal(arguments)
    interface, filter_text = names.choose(arguments.words, names.names(), names.current_default())
    # numpy's BLAS, which is not used here, would start threads before the privileges are gone.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from nettop.collect import live
    from nettop.collect.loader_client import start_loader

    home = _call_broker(arguments)
    handle = start_loader()  # from here on this process has no privileges
    try:
        chosen = _split_word(_settings(arguments, home or privilege.home(os.environ), interface, filter_text))
        if arguments.check:
            return _check(live.check(handle, chosen))
        control = Control.of(chosen, focuses(chosen))
        frames = live.frames(handle, chosen, control)
        if chosen.batch:
            if chosen.focus or control.trace == "focus":
                from nettop.analysis.focus import focusing

                frames = focusing(frames, control, chosen.focus)
            if chosen.redact:
                from nettop.record.redact import this_run

                hide = this_run()
                hidden = "-".join(hide.endpoint(end) for end in chosen.focus.split("-"))
                chosen = replace(chosen, filter=hide.filter(chosen.filter), focus=hidden)
                frames = _hidden(frames, hide)
            return _batch(frames, chosen, arguments, live=True)
        return _screen(frames, chosen, control)
    finally:
        handle.close()


async def _hidden(frames: AsyncIterator[Frame], hide: Redactor) -> AsyncIterator[Frame]:
    """The same frames with pseudonyms in them."""
    import asyncio

    async with contextlib.aclosing(frames):  # type: ignore[type-var]
        async for frame in frames:
            yield await asyncio.to_thread(hide.frame, frame)


def _need_capabilities(arguments: Arguments) -> None:
    """Root, or the few capabilities that loading and attaching needs.  NettopError (3) names what is not there."""
    held = privilege.effective()
    missing = privilege.missing(held)
    if not missing:
        return
    from humanize import natural_list

    sudo = f"sudo nettop {' '.join(arguments.words)}".rstrip()
    if held & privilege.mask(privilege.NET_ADMIN, privilege.BPF, privilege.PERFMON, privilege.SYS_ADMIN):
        raise NettopError(
            f"loading programs into the kernel needs {natural_list(missing)} as well",
            f"{sudo}, or add {natural_list(missing)} to what starts it (a unit's AmbientCapabilities=)",
            ExitCode.PRIVILEGE,
        )
    raise NettopError(
        "loading programs into the kernel needs root",
        f"{sudo}; --replay FILE and --demo need none",
        ExitCode.PRIVILEGE,
    )


def _split_word(chosen: Settings) -> Settings:
    """A single word that is no expression is looked for by the screen.  FilterError for what is neither.

    Without a screen it is an error as well: a script's misspelt filter must not pass for one that nothing matches.
    """
    if not chosen.filter:
        return chosen
    from nettop.bpf import filter as filters
    from nettop.netdev.link import link_header

    link = filters.EN10MB
    with contextlib.suppress(OSError):  # no such interface: that is said later
        link = filters.link_type(link_header(chosen.interface))
    if filters.compile_or_word(chosen.filter, link) is not None:
        return chosen
    if not chosen.batch:
        return replace(chosen, filter="", word=chosen.filter)
    try:
        filters.compile_expression(chosen.filter, link)
    except filters.FilterError as error:
        hint = "a plain word is for the screen's rows; pcap-filter(7) has the language, as tcpdump's"
        raise filters.FilterError(error.message, hint) from None
    return chosen


def _need_terminal(arguments: Arguments) -> None:
    if arguments.batch or arguments.check or arguments.snapshot is not None:
        return
    if not sys.stdout.isatty():
        raise usage_error(
            "standard output is no terminal, and the screen needs one",
            "nettop -b writes frames to it; --format ndjson for programs",
        )
    if not (sys.stdin and sys.stdin.isatty()):
        raise usage_error(
            "standard input is no terminal, and keys come from it",
            "leave standard input alone, or use -b without a screen",
        )
    name = os.environ.get("TERM", "")
    if name in ("", "dumb", "unknown"):
        kind = f"a terminal of the kind {name} cannot be drawn on"
        raise usage_error(
            kind if name else "TERM does not say what terminal this is",
            "nettop -b writes frames as text; or set TERM to what it is, as TERM=xterm",
        )


def _check(found: Any) -> int:
    """What the kernel offers, a line each.  Exit code 4 where nothing holds."""
    rows = list(found)
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    _print_line(f"Linux {platform.release()}, Python {platform.python_version()}, nettop {version()}")
    for probe, hook, text, holds in (*rows, *_weighed()):
        mark = "yes" if holds else "no "
        _print_line(f"{probe:{widths[0]}}  {hook:{widths[1]}}  {mark}  {one_line(text)[:500]}")
    return ExitCode.OK if any(row[3] for row in rows) else ExitCode.UNSUPPORTED


def _weighed() -> list[tuple[str, str, str, bool]]:
    """What the screen writes to a terminal of this size, for those who have a slow line: measured with the demo."""
    if not DEMO.exists():
        return []
    import asyncio

    from nettop.record.recording import Recording

    shape = "-"
    try:
        from nettop.ui import frame_bytes  # brings Textual in

        size = frame_bytes.terminal_size()
        shape = f"{size[0]}x{size[1]}"
        with Recording(str(DEMO)) as recording:
            busy = [recording.frame(i) for i in range(min(10, len(recording)))]
        text = (
            f"{units.size(round(asyncio.run(frame_bytes.bytes_a_frame(busy, size))))} a frame to the terminal"
        )
    except Exception as error:
        _log.info("the screen", exc_info=True)
        return [("screen", shape, f"{type(error).__name__}: {error}", False)]
    return [("screen", shape, text, True)]


# --- where frames go ----------------------------------------------------------------------------------------


def _batch(frames: AsyncIterator[Frame], chosen: Settings, arguments: Arguments, live: bool = False) -> int:
    import asyncio

    from nettop import batch
    from nettop.output import SnapshotWriter, Style
    from nettop.record.recording import View, start_recorder

    # A snapshot is for --replay, unless a format is asked for.
    snapshot = arguments.snapshot is not None and "format" not in arguments.given
    named = arguments.snapshot or (chosen.output if snapshot else None)
    if named and files.exists(
        named
    ):  # now, not after the first interval; it is made with O_EXCL all the same
        raise usage_error(f"{named} is there already", "name a file that is not there")
    if snapshot or arguments.snapshot:
        style = Style(top=chosen.top, sort=chosen.sort, filter=chosen.filter)
        emit = partial(files.write_new, named) if named else batch.to_stdout
        output = batch.Output(SnapshotWriter(emit, style))
    elif chosen.output:
        sink = files.Sink(chosen.output)
        output = batch.Output(_writer(chosen, sink.write, None), sink)
    else:
        output = batch.Output(_writer(chosen, batch.to_stdout, sys.stdout))
    recorder = None
    if chosen.record:
        view = View(sort=chosen.sort, filter=chosen.filter)
        recorder = start_recorder(chosen.record, chosen.interface, view, chosen.top, chosen.redact)
    hangup = asyncio.Event() if chosen.output or recorder else None
    work = batch.run(frames, output, chosen.count, recorder, _print_error, hangup, live)
    return batch.until_signal(work, hangup)


def _writer(chosen: Settings, emit: Callable[[str], None], stream: Any) -> Writer:
    from nettop.output import WRITERS, Style, TraceWriter

    terminal = stream is not None and stream.isatty()
    style = Style(
        top=chosen.top,
        sort=chosen.sort,
        width=shutil.get_terminal_size((120, 40)).columns if terminal else 120,
        bits=chosen.bits,
        unicode=draws_unicode(chosen.charset),
        plain=not terminal,
        focus=chosen.focus,
        trace=chosen.trace,
    )
    writer = TraceWriter if chosen.trace and chosen.format == "text" else WRITERS[chosen.format]
    return writer(emit, style)


def _screen(
    frames: AsyncIterator[Frame],
    chosen: Settings,
    control: Control | None = None,
    problem: NettopError | None = None,
    replay: Replay | None = None,
) -> int:
    from nettop.probes.base import all_probes
    from nettop.session import Session
    from nettop.ui import app  # brings Textual in

    session = Session(chosen, control, problem, replay=replay)
    if chosen.record:
        session.start_recording(chosen.record)
    try:
        return app.run(session.watched(frames), tuple(all_probes().values()), session.settings, session)
    finally:
        session.close()
