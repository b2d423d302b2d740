"""A Frame as JSON, and back: schema nettop/1, docs/frame.md and docs/frame.schema.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from nettop import units
from nettop.model import SCHEMA, Frame, Health, Histogram, HookStatus, ProbeStatus, Section, Shed, State
from nettop.probes.base import all_probes

Loaders = Mapping[str, Callable[[Mapping[str, Any]], Section]]

VERSION = 1
_LARGEST = 1 << 63
_LONGEST_TEXT = 4096
# What a probe's loader may raise over data that has the wrong form.
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class SchemaError(Exception):
    """The data is no frame of ours; the text says what is wrong with it."""


def frame_to_json(frame: Frame, top: int, sort: str) -> dict[str, Any]:
    """The frame as the JSON of docs/frame.md; at most ``top`` rows of a long table, by column ``sort``."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "time_ns": frame.time_ns,
        "interval_ns": frame.interval_ns,
        "host": frame.host,
        "interface": frame.interface,
        "filter": frame.filter,
        "probes": {name: asdict(status) for name, status in frame.probes.items()},
        "health": asdict(frame.health),
    }
    if frame.notes:
        data["notes"] = list(frame.notes)
    for section in frame.sections.values():
        data.update(section.to_json(top, sort))
    return data


def dumps(data: Any) -> str:
    """JSON in one line.  ASCII only, so no string in it can do anything to a terminal."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_plain)


def readable(data: Mapping[str, Any]) -> str:
    """JSON for people: a line for each key and each row of a long list, the first ``{``, the last ``}``."""
    parts = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(dumps(row) for row in value) + "\n ]"
        else:
            text = dumps(value)
        parts.append(f" {dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _plain(value: object) -> object:
    """Numbers of numpy, which sections hold, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a frame")


def loads(text: str | bytes) -> Any:
    """Parsed JSON, every string in it made harmless.  Raises SchemaError."""
    try:
        return _cleaned(json.loads(text, parse_constant=_refuse))
    except UnicodeDecodeError:
        raise SchemaError("not text") from None
    except json.JSONDecodeError as error:
        raise SchemaError(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else units.clean(value, _LONGEST_TEXT)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return value


def check_version(data: Any) -> int:
    """The version of the schema that the data claims.  SchemaError where it is none that we can read."""
    name = data.get("schema") if isinstance(data, dict) else None
    match = re.fullmatch(r"nettop/(\d{1,4})", name) if isinstance(name, str) else None
    if match is None:
        raise SchemaError("not a frame of nettop")
    version = int(match[1])
    if version > VERSION:
        raise SchemaError(f"written by a newer nettop: schema {name}, this one reads up to {SCHEMA}")
    return version


def frame_from_json(data: Any, loaders: Loaders | None = None) -> Frame:
    """The inverse of frame_to_json, for this version of the schema and older ones.  Raises SchemaError.

    ``loaders`` make a section from the whole frame, by probe; those of all probes by default.
    """
    check_version(data)
    if loaders is None:
        loaders = {name: probe.load for name, probe in all_probes().items()}
    try:
        probes = {name: _status(status) for name, status in _table(data, "probes").items()}
        frame = Frame(
            time_ns=_number(data, "time_ns"),
            interval_ns=_number(data, "interval_ns"),
            host=_string(data, "host"),
            interface=_string(data, "interface"),
            filter=_string(data, "filter"),
            probes=probes,
            health=_health(_table(data, "health")),
            notes=tuple(str(note) for note in data.get("notes", ())),
        )
    except _MALFORMED as error:
        raise SchemaError(_reason(error)) from None
    sections: dict[str, Section] = {}
    for name, status in probes.items():
        if status.state == "live" and name in loaders:
            try:
                sections[name] = loaders[name](data)
                _check_values(sections[name])
            except _MALFORMED as error:
                raise SchemaError(f"{name}: {_reason(error)}") from None
    return replace(frame, sections=sections)


def _check_values(part: Any) -> None:
    """That every field of a section holds what its annotation says, in range.  Raises ValueError with its name.

    A reader that takes a value as it stands need not look at it: what is drawn is a number where one belongs.
    """
    kind: Any = type(part)
    for name, hint in _hints(kind).items():
        if not _is_a(getattr(part, name), hint):
            raise ValueError(f"{name} makes no sense")


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as annotations of sections write them; a type that is not known here is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_is_a(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_is_a, value, inner))
    if hint is int:
        return type(value) is int and -_LARGEST <= value < 2 * _LARGEST
    if hint is float:
        return type(value) in (int, float) and abs(value) < 2 * _LARGEST
    if hint in (str, bool, bytes, type(None)):
        return type(value) is hint
    if hint is Histogram:
        return isinstance(value, Histogram) and _is_a(value.sum_ns, int) and value.sum_ns >= 0
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, hint):
            return False
        _check_values(value)
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return units.clean(str(error)) or type(error).__name__


def _number(data: Mapping[str, Any], key: str) -> int:
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise ValueError(f"{key} is not a number")
    return value


def _maybe(data: Mapping[str, Any], key: str) -> int | None:
    return None if data.get(key) is None else _number(data, key)


def _string(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a text")
    return value


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not a table")
    return value


def _status(data: Mapping[str, Any]) -> ProbeStatus:
    if data["state"] not in get_args(State):
        raise ValueError(f"{data['state']!r} is no state of a probe")
    hooks = tuple(
        HookStatus(
            _string(h, "hook"),
            _string(h, "via"),
            _maybe(h, "runs"),
            _maybe(h, "run_ns"),
            _maybe(h, "recursion_misses"),
        )
        for h in data.get("hooks", ())
    )
    return ProbeStatus(data["state"], _string(data, "detail"), hooks)


def _health(data: Mapping[str, Any]) -> Health:
    shed = _table(data, "shed")
    return Health(
        lost_events=_maybe(data, "lost_events") or 0,
        evicted_flows=_maybe(data, "evicted_flows") or 0,
        untracked_packets=_maybe(data, "untracked_packets") or 0,
        kernel_ns=_maybe(data, "kernel_ns"),
        user_ns=_maybe(data, "user_ns") or 0,
        rss_bytes=_maybe(data, "rss_bytes") or 0,
        budget_ns=_maybe(data, "budget_ns"),
        shed=Shed(*(_maybe(shed, f.name) or 1 for f in fields(Shed))),
    )
