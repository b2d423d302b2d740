"""The program: what the command line asks for, in the order that privileges demand.

Started by sudo, this process has root's rights only until the loader runs.  So the command line alone is
parsed first; every file is opened after the rights are gone, as the user.  Heavy imports wait for their need.
"""

from __future__ import annotations

import difflib
import logging
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettop import interfaces, privilege, settings
from nettop.errors import ExitCode, NettopError
from nettop.paths import PACKAGE
from nettop.settings import Arguments, Control, Settings

if TYPE_CHECKING:
    from nettop.model import Frame
    from nettop.output import Writer
    from nettop.sources import Source

DEMO = PACKAGE / "demo.ndjson.gz"
_log = logging.getLogger("nettop")
_log.addHandler(logging.NullHandler())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code for the shell.  Errors are two lines on standard error."""
    try:
        return _run(settings.parse(sys.argv[1:] if argv is None else argv))
    except NettopError as error:
        _complain(error.lines())
        return error.code
    except BrokenPipeError:  # `nettop -b | head`: whoever reads has enough
        _silence_stdout()
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        _log.info("unexpected", exc_info=True)  # a file has it; standard error has the two lines
        _complain(
            f"nettop: {type(error).__name__}: {_one_line(str(error))}\n"
            "hint: this is a bug; --log FILE keeps the details of it for a report"
        )
        return ExitCode.FAILURE


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _silence_stdout() -> None:
    """Nothing is left that the interpreter could try to write when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _run(arguments: Arguments) -> int:
    if arguments.list_probes:
        return _list_probes()
    if arguments.print_config:
        _become_user()
        sys.stdout.write(settings.to_toml(_settings(arguments)))
        sys.stdout.flush()
        return ExitCode.OK
    if arguments.replay is not None or arguments.demo:
        return _replay(arguments)
    return _live(arguments)


def _become_user() -> None:
    """Give up what sudo gave us, where nothing needs it."""
    if os.geteuid() == 0 or privilege.effective():
        privilege.drop(os.environ)


def _settings(arguments: Arguments, interface: str = "", filter_text: str = "") -> Settings:
    """The settings in effect; as the user, so after privileges are given up."""
    _start_log(arguments)
    chosen = settings.build(arguments, Path(privilege.home(os.environ)), interface, filter_text)
    _check_names(chosen)
    return chosen


def _start_log(arguments: Arguments) -> None:
    handler: logging.Handler
    if arguments.log is not None:
        try:
            fd = os.open(arguments.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise NettopError(
                f"{arguments.log}: {error.strerror}", "name a file where you may write", ExitCode.USAGE
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


def _check_names(chosen: Settings) -> None:
    """Names of probes and columns, which settings can't know.  Raises NettopError (2)."""
    if not (chosen.probes or chosen.sort):
        return
    from nettop.probes.base import all_probes

    probes = all_probes()
    for name in chosen.probes:
        _known("probe", name, list(probes))
    columns = [c.key for p in probes.values() for pane in p.panes if pane.table for c in pane.table.columns]
    if chosen.sort:
        _known("column", chosen.sort, columns)


def _known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
        raise NettopError(f"unknown {kind}: {name}", hint, ExitCode.USAGE)


def _list_probes() -> int:
    from nettop.probes.base import all_probes

    probes = all_probes()
    width = max(map(len, probes), default=0)
    for name, probe in probes.items():
        _say(f"{name:{width}}  {probe.summary}")
        _say(f"{'':{width}}  hooks: {', '.join(hook.name for hook in probe.hooks)}")
    return ExitCode.OK


# --- a recording --------------------------------------------------------------------------------------------


def _replay(arguments: Arguments) -> int:
    path = arguments.replay
    if path is None:
        if not DEMO.exists():
            raise NettopError(
                "this installation has no demo recording", "--replay FILE plays your own", ExitCode.USAGE
            )
        path = str(DEMO)
    _need_terminal(arguments)
    _become_user()
    chosen = _settings(arguments)
    from nettop.recording import Recording
    from nettop.sources import Replay

    with Recording(path) as recording:
        if chosen.batch:
            return _batch(Replay(recording, speed=float("inf")).frames(), chosen, arguments)
        return _screen(Replay(recording), chosen, problem=recording.problem)


# --- the running kernel -------------------------------------------------------------------------------------


def _live(arguments: Arguments) -> int:
    if not privilege.may_load(privilege.effective()):
        raise NettopError(
            "loading programs into the kernel needs root",
            f"sudo nettop {' '.join(arguments.words)}".rstrip() + "; --replay FILE and --demo need none",
            ExitCode.PRIVILEGE,
        )
    _need_terminal(arguments)
    interface, filter_text = interfaces.choose(
        arguments.words, interfaces.names(), interfaces.current_default()
    )
    # numpy's BLAS, which nobody here uses, would start threads before the privileges are gone.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from nettop import live

    handle = live.start_loader()  # from here on this process has no privileges
    try:
        chosen = _settings(arguments, interface, filter_text)
        if arguments.check:
            return _check(live.check(handle, chosen))
        control = Control.of(chosen)
        if chosen.batch:
            return _batch(live.frames(handle, chosen, control), chosen, arguments)
        return _screen(_Live(lambda: live.frames(handle, chosen, control)), chosen, control)
    finally:
        handle.close()


class _Live:
    """The running kernel as a Source."""

    def __init__(self, start: Callable[[], AsyncIterator[Frame]]) -> None:
        self._start = start

    def frames(self) -> AsyncIterator[Frame]:
        """Frames, each when its interval is over."""
        return self._start()


def _need_terminal(arguments: Arguments) -> None:
    if arguments.batch or arguments.check or arguments.snapshot is not None:
        return
    if not sys.stdout.isatty():
        raise NettopError(
            "standard output is no terminal, and the screen needs one",
            "nettop -b writes frames to it; --format ndjson for programs",
            ExitCode.USAGE,
        )


def _check(found: Any) -> int:
    """What the kernel offers, a line each.  Exit code 4 where nothing holds."""
    rows = list(found)
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    _say(f"Linux {platform.release()}, Python {platform.python_version()}, nettop {settings.version()}")
    for probe, hook, text, holds in rows:
        mark = "yes" if holds else "no "
        _say(f"{probe:{widths[0]}}  {hook:{widths[1]}}  {mark}  {_one_line(text)}")
    return ExitCode.OK if any(row[3] for row in rows) else ExitCode.UNSUPPORTED


# --- where frames go ----------------------------------------------------------------------------------------


def _batch(frames: AsyncIterator[Frame], chosen: Settings, arguments: Arguments) -> int:
    from nettop import batch
    from nettop.files import Sink
    from nettop.recording import start_recorder

    if arguments.snapshot:
        _refuse_existing(arguments.snapshot)
        outputs: list[batch.Output] = [_Snapshot(arguments.snapshot, chosen)]
    elif chosen.output:
        sink = Sink(chosen.output)
        outputs = [batch.Formatted(_writer(chosen, sink.write, None).write, sink)]
    else:
        outputs = [batch.Formatted(_writer(chosen, batch.to_stdout, sys.stdout).write)]
    recorder = start_recorder(chosen.record, chosen) if chosen.record else None
    return batch.until_signal(batch.run(frames, outputs, chosen.count, recorder, _complain))


def _writer(chosen: Settings, emit: Callable[[str], None], stream: Any) -> Writer:
    from nettop.output import WRITERS, Style

    terminal = stream is not None and stream.isatty()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    style = Style(
        top=chosen.top,
        sort=chosen.sort,
        width=shutil.get_terminal_size((120, 40)).columns if terminal else 120,
        bits=chosen.bits,
        unicode=encoding.lower().startswith("utf"),
    )
    return WRITERS[chosen.format](emit, style)


def _refuse_existing(path: str) -> None:
    """Say so now, not after the first interval; the file is made with O_EXCL all the same."""
    if os.path.lexists(path):
        raise NettopError(f"{path} is there already", "name a file that is not there", ExitCode.USAGE)


class _Snapshot:
    """One frame into a file of its own."""

    def __init__(self, path: str, chosen: Settings) -> None:
        self._path = path
        self._chosen = chosen

    def write(self, frame: Frame) -> None:
        """Write the file."""
        from nettop.recording import View, header_of, write_snapshot

        chosen = self._chosen
        header = header_of(frame, "snapshot", View(sort=chosen.sort, filter=chosen.filter))
        write_snapshot(self._path, [frame], header, chosen.top, chosen.sort)

    def close(self) -> None:
        """Nothing is open."""


def _screen(
    source: Source, chosen: Settings, control: Control | None = None, problem: NettopError | None = None
) -> int:
    from nettop.probes.base import all_probes
    from nettop.session import Session
    from nettop.ui import app  # brings Textual in

    session = Session(chosen, control, problem)
    if chosen.record:
        session.start_recording(chosen.record)
    try:
        return app.run(session.watched(source), tuple(all_probes().values()), session.options(), session)
    finally:
        session.close()
