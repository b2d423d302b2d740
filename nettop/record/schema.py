"""A Frame as JSON, and back: schema nettop/1, docs/frame.md and docs/frame.schema.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.core import units
from nettop.core.frame import SCHEMA, Frame, Section
from nettop.probes.base import all_probes, missed

VERSION = 1
_LONGEST_TEXT = 4096
# What a probe's loader may raise over data that has the wrong form.
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class SchemaError(Exception):
    """The data is no frame of ours; the text says what is wrong with it."""


def frame_to_json(frame: Frame, top: int, sort: str) -> dict[str, Any]:
    """The frame as the JSON of docs/frame.md; at most ``top`` rows of a long table, by column ``sort``."""
    data: dict[str, Any] = {"schema": SCHEMA, **frame.to_json()}
    names = (f.name for f in missed(all_probes().values()))
    data["health"] = {**dict.fromkeys(names), **data["health"]}  # null: its probe does not run
    for section in frame.sections.values():
        data.update(section.in_frame(top, sort))
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


def frame_from_json(data: Any, kinds: Mapping[str, type[Section]] | None = None) -> Frame:
    """The inverse of frame_to_json, for this version of the schema and older ones.  Raises SchemaError.

    ``kinds``: the sections that are wanted, by probe; those of all probes by default.
    """
    check_version(data)
    if kinds is None:
        kinds = {name: probe.section for name, probe in all_probes().items()}
    try:
        frame = Frame.from_json(data)
    except _MALFORMED as error:
        raise SchemaError(_reason(error)) from None
    sections: dict[str, Section] = {}
    for name, status in frame.probes.items():
        if status.state == "live" and name in kinds:
            try:
                sections[name] = kinds[name].from_frame(data)
            except _MALFORMED as error:
                raise SchemaError(f"{name}: {_reason(error)}") from None
    return replace(frame, sections=sections)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return units.clean(str(error)) or type(error).__name__
