"""Command line and TOML file -> one frozen Settings; the command line wins.

The two are read at different times: the command line before anything else, the file only once the process has
given its privileges up, so that the file is read as the user who is behind sudo.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from nettop.core.charset import CHARSETS
from nettop.core.errors import ExitCode, NettopError
from nettop.core.paths import version
from nettop.record import files

if TYPE_CHECKING:  # it brings numpy, whose threads would keep privileges
    from nettop.core.frame import Focus

FORMATS = ("text", "ndjson", "csv")
UNITS = ("bits", "bytes")
_T = TypeVar("_T", int, float)


@dataclass(frozen=True)
class Settings:
    """Everything the user decides at the start.  Times are in seconds."""

    # What the file may hold; OPTIONS below has one entry for each.
    delay: float = 1.0
    probes: tuple[str, ...] = ()  # empty: all
    max_flows: int = 65536
    scan_interval: float = 0.0  # 0: with every frame
    budget: float = 20.0  # percent of one core; 0: none
    subnets: tuple[int, int] = (24, 48)
    top: int = 1000
    sort: str = ""  # empty: the table's own default
    format: str = "text"
    units: str = "bits"
    names: bool = False
    theme: str = ""
    charset: str = "auto"  # auto: by the locale
    history: float = 600.0  # of the screen
    keys: Mapping[str, str] = field(default_factory=dict)  # by action, which the screen knows

    # What this run is about.
    interface: str = ""
    filter: str = ""
    word: str = ""  # what the screen's rows are searched for, instead of a filter
    batch: bool = False
    count: int | None = None
    output: str | None = None
    record: str | None = None
    focus: str = ""  # an end of the flow to explain, or to trace
    trace: bool = False  # packets one by one
    redact: bool = False  # pseudonyms for addresses and names

    @property
    def bits(self) -> bool:
        return self.units == "bits"


@dataclass
class Control:
    """What may change while it runs.  The screen writes it, the engine reads it before each interval."""

    delay: float = 1.0
    filter: str = ""
    focus: Focus | None = None  # the flow in focus
    trace: str = ""  # packets one by one: "focus": that flow's; "all": those that the filter accepts; fixed
    paused: bool = False  # what is shown stands still; collection goes on

    @classmethod
    def of(cls, settings: Settings, focuses: bool = True) -> Control:
        """The state at the start; without a table of flows (``focuses``) no flow can be in focus."""
        trace = "" if not settings.trace else "focus" if focuses else "all"
        return cls(delay=settings.delay, filter=settings.filter, trace=trace)


@dataclass(frozen=True)
class Arguments:
    """The command line, checked, before any file was read."""

    given: Mapping[str, Any]  # values for keys of the file, as fields of Settings
    words: tuple[str, ...] = ()  # [IFACE] [FILTER ...]
    batch: bool = False
    count: int | None = None
    output: str | None = None
    snapshot: str | None = None  # "": to standard output
    record: str | None = None
    replay: str | None = None
    demo: bool = False
    list_probes: bool = False
    new_probe: str | None = None
    check: bool = False
    focus: str | None = None
    trace: bool = False
    redact: bool = False
    config: str | None = None
    print_config: bool = False
    log: str | None = None


# --- values: each reader takes a text of the command line or a value of the file, or raises ValueError ----


def _number(
    kind: type[_T], low: float, high: float, unit: str = "", zero: bool = False
) -> Callable[[object], _T]:
    """From ``low`` to ``high``, or 0 where ``zero``."""
    wanted = "must be a whole number" if kind is int else "must be a number"

    def read(value: object) -> _T:
        if isinstance(value, str) and unit == "percent":
            value = value.removesuffix("%")
        if isinstance(value, bool) or not isinstance(value, str | int | kind):
            raise ValueError(wanted)
        try:
            number = kind(value)
        except ValueError:
            raise ValueError(wanted) from None
        if not (low <= number <= high or (zero and number == 0)):
            raise ValueError(f"must be from {low} to {high} {unit}".rstrip())
        return number

    return read


def _choice(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return read


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not (value.isprintable() and len(value) <= 64):
        raise ValueError("must be a short text")
    return value


def _matching(pattern: str, what: str) -> Callable[[object], str]:
    """What the pattern matches, or nothing."""

    def read(value: object) -> str:
        if not isinstance(value, str) or (value and not re.fullmatch(pattern, value)):
            raise ValueError(f"must be {what}")
        return value

    return read


_name = _matching(r"[a-z][a-z0-9_]*", "a name of small letters, figures and _")
_column = _matching(
    r"[A-Za-z][A-Za-z0-9_/.]*", "a column's name, its title or a field's name, such as rx, rx/s or rtt.min_ns"
)


def _items(value: object) -> list[object]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    if isinstance(value, list):
        return value
    raise ValueError("must be a list")


def _probes(value: object) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(_name(item) for item in _items(value)))
    if not all(names):
        raise ValueError("must be names with commas between them")
    return names


def _subnets(value: object) -> tuple[int, int]:
    items = _items(value)
    if len(items) != 2:
        raise ValueError("must be two prefix lengths, for IPv4 and IPv6")
    return _number(int, 0, 32)(items[0]), _number(int, 0, 128)(items[1])


def _keys(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    for action, keys in value.items():
        if not isinstance(keys, str) or not all(name.strip() for name in keys.split(",")):
            raise ValueError(
                f'{action} must be the name of a key ("comma" is one), or several with commas between'
            )
    return value


@dataclass(frozen=True)
class Option:
    """A key of the file, and how its value is read; ``help`` is its comment there and its text in --help.

    With a ``metavar`` the command line has it as well: ``--KEY``, and ``short``.
    """

    key: str
    read: Callable[[object], Any]
    help: str
    metavar: str = ""
    short: str = ""


OPTIONS: tuple[Option, ...] = (
    Option("delay", _number(float, 0.1, 60, "seconds"), "seconds between frames, 0.1 to 60", "SEC", "-d"),
    Option("probes", _probes, "the probes to run; none named: all of them", "LIST", "-p"),
    Option("max_flows", _number(int, 64, 1 << 20), "size of the flow table, up to 1048576", "N"),
    Option(
        "scan_interval",
        _number(float, 0.1, 600, "seconds", zero=True),
        "seconds between readings of the flow table; 0: the delay",
        "SEC",
    ),
    Option(
        "budget",
        _number(float, 0, 10_000, "percent"),
        "percent of one core that watching may cost, beyond which less is sampled; 0: no limit",
        "PERCENT",
    ),
    Option("subnets", _subnets, "prefix lengths for RTT by subnet, IPv4 and IPv6", "V4,V6"),
    Option("top", _number(int, 1, 1_000_000), "rows of a table in text, CSV and JSON output", "N"),
    Option(
        "sort",
        _column,
        "what orders the rows of tables: a column by its title or name, or a field; none: by rate",
        "COLUMN",
        "-s",
    ),
    Option("format", _choice(*FORMATS), "format of --batch: text, ndjson or csv", "FORMAT"),
    Option("units", _choice(*UNITS), "rates in bits or bytes a second"),
    Option("names", _flag, "host names instead of addresses, by reverse DNS"),
    Option("theme", _text, "colours of the screen; none: the built-in ones"),
    Option(
        "charset", _choice(*CHARSETS), "what is drawn with: ascii, unicode, or auto, which is by the locale"
    ),
    Option("history", _number(float, 10, 86400, "seconds"), "seconds of history that the screen keeps"),
    Option("keys", _keys, 'keys by action, as pause = "p" or quit = "q,x"; see docs/keys.md'),
)
_BY_KEY: Mapping[str, Option] = {o.key: o for o in OPTIONS}
DEFAULTS = Settings()


# --- the command line -------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise usage_error(message.removeprefix("argument "))


def usage_error(message: str, hint: str = "nettop --help shows the options") -> NettopError:
    """For what the command line or the settings file asks for and cannot have; exit code 2."""
    return NettopError(message, hint, ExitCode.USAGE)


def _argument(read: Callable[[object], Any]) -> Callable[[str], Any]:
    """A reader as argparse wants it."""

    def argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


_DESCRIPTION = "How fast this host's network is, whose it is, how late and where, and what was lost: live."
_EPILOG = """\
IFACE is the default route's interface if left out.  FILTER is a pcap-filter expression; on the screen, a single word
that is none is looked for in the rows.

exit codes: 0 done, 1 failure while running, 2 usage or configuration, 3 no privilege,
4 this kernel or installation can't, 5 no such interface, 129 hung up, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar.  Its errors are NettopErrors with exit code 2."""
    p = _Parser(
        prog="nettop",
        usage="nettop [OPTIONS] [IFACE] [FILTER ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    p.add_argument("words", nargs="*", metavar="[IFACE] [FILTER ...]", help=argparse.SUPPRESS)

    run = p.add_argument_group("what to do")
    run.add_argument("-b", "--batch", action="store_true", help="no screen; frames to standard output")
    run.add_argument(
        "-n", "--count", type=_argument(_number(int, 1, 1 << 62)), metavar="N", help="stop after N frames"
    )
    run.add_argument(
        "-o", "--output", metavar="FILE", help="--batch into a new file; .gz: gzip; SIGHUP: opens it anew"
    )
    run.add_argument("--snapshot", nargs="?", const="", metavar="FILE", help="one frame, for --replay")
    run.add_argument("--record", metavar="FILE", help="every frame into a new file, for --replay")
    run.add_argument("--replay", metavar="FILE", help="the same from a recording or snapshot; needs no root")
    run.add_argument("--demo", action="store_true", help="replay the recording that comes with nettop")
    run.add_argument("--focus", metavar="END", help="with -b: explain the busiest flow that has ADDRESS:PORT")
    run.add_argument("--trace", action="store_true", help="with -b: the packets of that flow, one by one")
    run.add_argument(
        "--redact", action="store_true", help="hide addresses and names, on the screen and in files"
    )
    run.add_argument("--list-probes", action="store_true", help="the probes that there are")
    run.add_argument(
        "--new-probe", metavar="NAME", help="write a probe of your own, to be changed, into ./NAME"
    )
    run.add_argument("--check", action="store_true", help="what this kernel offers each probe, and why not")

    how = p.add_argument_group("how")
    for option in OPTIONS:
        if option.metavar:
            flags = [*filter(None, [option.short]), f"--{option.key.replace('_', '-')}"]
            text = option.help + _default_text(option.key)
            how.add_argument(*flags, type=_argument(option.read), metavar=option.metavar, help=text)

    drawn = how.add_mutually_exclusive_group()
    for name in ("ascii", "unicode"):
        drawn.add_argument(
            f"--{name}",
            dest="charset",
            action="store_const",
            const=name,
            help=f"draw with {name}, whatever the locale",
        )

    rest = p.add_argument_group("the program")
    rest.add_argument("-c", "--config", metavar="FILE", help="instead of ~/.config/nettop/nettop.toml")
    rest.add_argument("--print-config", action="store_true", help="the settings in effect, as such a file")
    rest.add_argument("--log", metavar="FILE", help="details of what happens, for a bug report")
    rest.add_argument("-V", "--version", action="version", version=f"nettop {version()}")
    rest.add_argument("-h", "--help", action="help", help="this text")
    return p


def _default_text(key: str) -> str:
    value = getattr(DEFAULTS, key)
    if value in ("", (), 0):
        return ""
    return f" ({','.join(map(str, value))})" if isinstance(value, tuple) else f" ({value})"


def parse(argv: Sequence[str]) -> Arguments:
    """The command line alone: reads no file.  NettopError (2); SystemExit after --help and --version."""
    try:
        values = vars(parser().parse_intermixed_args(list(argv)))
    except argparse.ArgumentError as error:  # parse_intermixed_args lets some through
        raise usage_error(str(error).removeprefix("argument ")) from None
    given = {key: values.pop(key) for key in list(values) if key in _BY_KEY}
    values["words"] = tuple(values["words"])
    arguments = Arguments(given={k: v for k, v in given.items() if v is not None}, **values)
    _refuse_contradictions(arguments)
    return arguments


def _refuse_contradictions(a: Arguments) -> None:
    played = a.demo or a.replay is not None
    if a.demo and a.replay is not None:
        raise usage_error("--demo and --replay exclude each other")
    if a.words and played:
        raise usage_error("a recording has its own interface and filter", "leave IFACE and FILTER out")
    if a.check and played:
        raise usage_error("--check asks the running kernel, not a recording", "leave --replay out")
    if a.snapshot is not None and (a.record is not None or a.count is not None):
        raise usage_error("--snapshot is one frame", "use --batch with --record or --count")
    if a.snapshot and a.output is not None:
        raise usage_error("--snapshot FILE and --output exclude each other", "name one file")
    if a.output is not None and not (a.batch or a.snapshot is not None):
        raise usage_error("--output needs --batch", "add -b, or use --record FILE beside the screen")
    if a.focus is not None and not a.batch:
        raise usage_error("--focus needs --batch", "on the screen, enter opens a flow's page")
    if a.trace and not (a.batch and a.given.get("format", "text") != "csv"):
        raise usage_error("--trace needs --batch, as text or ndjson", "add -b")
    for name in ("output", "record", "replay", "log", "config"):
        if getattr(a, name) == "":
            raise usage_error(f"--{name} needs the name of a file")


# --- the file ---------------------------------------------------------------------------------------------


def default_path(home: Path) -> Path:
    """Where the settings are when -c does not say: $XDG_CONFIG_HOME or ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else home / ".config") / "nettop" / "nettop.toml"


def read_file(path: Path, required: bool) -> dict[str, Any]:
    """The values of a settings file by field of Settings; none where it is not there and not ``required``."""
    try:
        with open(files.opened("read", str(path)), "rb") as stream:
            data = tomllib.load(stream)
    except FileNotFoundError:
        if not required:
            return {}
        raise usage_error(f"{path}: there is no such file", "nettop --print-config writes one") from None
    except OSError as error:
        raise usage_error(
            f"{path}: {error.strerror or 'cannot be read'}", "-c FILE names another one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise usage_error(f"{path}: not TOML: {one_line(str(error))}", "see docs/nettop.toml") from None
    return from_data(data, path)


def from_data(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Checked values from a parsed file; NettopError (2) names the key that is wrong."""
    values: dict[str, Any] = {}
    for key, value in data.items():
        option = _BY_KEY.get(key)
        if option is None:
            raise usage_error(f"{path}: unknown key {key!r}", meant(key, {k: k for k in _BY_KEY}))
        try:
            values[key] = option.read(value)
        except ValueError as error:
            raise usage_error(f"{path}: {key} {error}", option.help) from None
    return values


def meant(name: str, known: Mapping[str, str], close: Mapping[str, str] | None = None) -> str:
    """A hint for a name that is none of the ``known``: those of ``close`` (``known``) that it resembles, or all.

    Both have how each name is to be shown.
    """
    close = close or known
    near = dict.fromkeys(close[word] for word in difflib.get_close_matches(name, close, n=3))
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are: {', '.join(dict.fromkeys(known.values()))}"


def one_line(text: str) -> str:
    """The words of a text with single blanks between them."""
    return " ".join(text.split())


def build(arguments: Arguments, home: Path, interface: str = "", filter_text: str = "") -> Settings:
    """The settings in effect.  Reads the file, so call it as the user and not as root."""
    if arguments.config is not None:
        values = read_file(Path(arguments.config), required=True)
    else:
        values = read_file(default_path(home), required=False)
    values |= arguments.given
    return Settings(
        **values,
        interface=interface,
        filter=filter_text,
        batch=arguments.batch or arguments.snapshot is not None,
        count=1 if arguments.snapshot is not None else arguments.count,
        output=arguments.output,
        record=arguments.record,
        focus=arguments.focus or "",
        trace=arguments.trace,
        redact=arguments.redact,
    )


def to_toml(settings: Settings) -> str:
    """The settings as a file that ``read_file`` takes, each with its comment."""
    lines = ["# Settings of nettop: ~/.config/nettop/nettop.toml, or -c FILE.  The command line wins.", ""]
    for option in OPTIONS:
        lines += textwrap.wrap(option.help, 100, initial_indent="# ", subsequent_indent="# ")
        value = getattr(settings, option.key)
        if isinstance(value, Mapping):  # a table ends the top level, so it is the last of OPTIONS
            lines.append(f"[{option.key}]")
            lines += [f"{_toml(action)} = {_toml(keys)}" for action, keys in value.items()]
        else:
            lines += [f"{option.key} = {_toml(value)}", ""]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
