"""The fields of a frame, each declared once; everything else that has to know of them is derived from that.

A part of the frame is a frozen dataclass that inherits from ``Part`` and whose fields are made by ``field()``::

    drops: int | None = field("packets that the interface dropped, in the interval", "packets")

From the declaration come the JSON of it both ways, its place in docs/frame.schema.json and docs/frame.md, what
redaction does with it, and whether ``r`` sets it back to 0.  The annotation says what it may be: int, float, bool, str,
``None`` beside one of them, Histogram, another Part, or a tuple of any of these.  Tables have columns: see table.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from nettop.core import units
from nettop.core.histogram import Histogram, histogram_from_json, histogram_json

LARGEST = 1 << 63
# What is in a text.  Redaction replaces addresses and names by pseudonyms, and hides what is not declared harmless.
Privacy = Literal["hidden", "harmless", "address", "endpoint", "name", "interface", "filter", "message"]
Json = Any
Schema = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """How values of a type are written: to JSON, back (ValueError for what makes no sense), and as JSON Schema.

    ``columns``, of a table: those of table.py.
    """

    write: Callable[[Any], Json]
    read: Callable[[Json], Any]
    schema: Callable[[], Schema]
    columns: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """One field.

    ``text`` says what it is and from where, ``unit`` in what it is counted.  ``name`` is its name in the frame where
    that is not the attribute's, ``was`` those that older recordings have.  ``total``: it runs since the start.
    ``ways``: a pair of values, received and sent, that are two fields of the frame, ``rx_NAME`` and ``tx_NAME``.
    ``absent``: left out of the frame where it is None.  ``place``: the part of the frame that a section's field is in
    instead (``health``).  ``open``: a mapping whose entries are fields beside the part's own, each a count.
    """

    text: str
    unit: str = ""
    name: str = ""
    was: tuple[str, ...] = ()
    privacy: Privacy = "hidden"
    total: bool = False
    ways: bool = False
    absent: bool = False
    place: str = ""
    open: bool = False
    codec: Codec | None = None


def field(
    text: str,
    unit: str = "",
    *,
    default: Any = dataclasses.MISSING,
    factory: Any = dataclasses.MISSING,
    **more: Any,
) -> Any:
    """A field of a Part; ``more`` is that of Spec.  A reader takes the default where a frame has no such field."""
    spec = Spec(text, unit, **more)
    return dataclasses.field(default=default, default_factory=factory, metadata={"spec": spec})


class Derived(property):
    """A property that is in the frame, too, and is not read back."""

    spec: Spec


def derived(text: str, unit: str = "", **more: Any) -> Callable[[Callable[[Any], Any]], Any]:
    """A field of the frame that is worked out from others."""

    def made(getter: Callable[[Any], Any]) -> Derived:
        found = Derived(getter)
        found.spec = Spec(text, unit, **more)
        return found

    return made


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """A field of a part as it is in the frame."""

    attribute: str
    name: str
    spec: Spec
    codec: Codec
    hint: Any  # its annotation
    derived: bool = False
    way: int = -1  # of a pair, which
    optional: bool = False  # a reader can do without it

    @property
    def total(self) -> bool:
        return self.spec.total or self.name.endswith("_total")

    @property
    def part(self) -> type[Part] | None:
        """The kind of part that it holds, if any: alone, in a tuple, or None beside it."""
        return _inner_part(self.hint)

    @property
    def several(self) -> bool:
        hints = (self.hint, *get_args(self.hint))
        return bool(self.codec.columns) or any(get_origin(hint) is tuple for hint in hints)


class Part:
    """What consists of declared fields."""

    __slots__ = ()

    def to_json(self) -> dict[str, Json]:
        result = {}
        kind: Any = type(self)
        for f in described(kind):
            value = getattr(self, f.attribute)
            if f.spec.open:
                result.update(value)
                continue
            if f.way >= 0:
                value = None if value is None else value[f.way]
            if not f.spec.absent or (value is not None and value != ()):
                result[f.name] = f.codec.write(value)
        return result

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse: defaults for what is missing, and for null where there is none.  ValueError, and its kin."""
        return cls(**read_fields(cls, data))


def read_fields(kind: Any, data: Any) -> dict[str, Any]:
    """The arguments with which a part is made, from its JSON."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{kind.__name__} is no table")
    values: dict[str, Any] = {}
    for f in described(kind):
        if f.derived:
            continue
        if f.spec.open:
            values[f.attribute] = _others(kind, data)
            continue
        found = next((data[name] for name in (f.name, *f.spec.was) if name in data), None)
        if found is None:
            continue
        try:
            value = f.codec.read(found)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{f.name}: {error}") from None
        values[f.attribute] = value if f.way < 0 else (*values.get(f.attribute, ()), value)
    for name, pair, needed, nullable in _made_of(kind):
        if pair and len(values.get(name, ())) == 1:
            del values[name]  # one direction alone
        if needed and name not in values:
            if not nullable:
                raise ValueError(f"{name} is missing")
            values[name] = None
    return values


@cache
def _made_of(kind: Any) -> tuple[tuple[str, bool, bool, bool], ...]:
    """Each argument of a part: its name, whether it is a pair, whether it is needed, and whether it may be None."""
    return tuple(
        (
            each.name,
            bool(each.metadata.get("spec") and each.metadata["spec"].ways),
            _needed(each),
            NoneType in get_args(_hints(kind)[each.name]),
        )
        for each in dataclasses.fields(kind)
    )


def _others(kind: Any, data: Mapping[str, Json]) -> dict[str, int]:
    """Counts that the part does not declare itself; whatever else there may be is a later version's."""
    declared = {name for f in described(kind) for name in (f.name, *f.spec.was)}
    return {name: count(v) for name, v in data.items() if name not in declared and type(v) is int}


@cache
def described(kind: Any) -> tuple[Described, ...]:
    """The fields of a kind of part, in their order: those that are stored, then those that are worked out."""
    return tuple(f for f in _described(kind) if not f.spec.place)


@cache
def elsewhere(kind: Any, place: str) -> tuple[Described, ...]:
    """The fields of a section that are in this part of the frame instead."""
    return tuple(f for f in _described(kind) if f.spec.place == place)


def _described(kind: Any) -> Iterator[Described]:
    hints = _hints(kind)
    for each in dataclasses.fields(kind):
        spec: Spec | None = each.metadata.get("spec")
        if spec is None:
            continue
        hint = hints[each.name]
        if get_origin(hint) is Literal:
            spec = dataclasses.replace(spec, privacy="harmless")  # one of our own words
        codec = spec.codec or codec_of(_first_of_pair(hint) if spec.ways else hint)
        optional = not _needed(each)
        for prefix, way in (("rx_", 0), ("tx_", 1)) if spec.ways else (("", -1),):
            name = prefix + (spec.name or each.name)
            yield Described(each.name, name, spec, codec, hint, way=way, optional=optional)
    for ancestor in reversed(kind.__mro__):
        for attribute, value in vars(ancestor).items():
            if isinstance(value, Derived):
                assert value.fget is not None
                hint, spec = get_type_hints(value.fget)["return"], value.spec
                codec = spec.codec or codec_of(hint)
                yield Described(attribute, spec.name or attribute, spec, codec, hint, derived=True)


def _needed(each: dataclasses.Field[Any]) -> bool:
    return each.default is each.default_factory  # both are missing


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _first_of_pair(hint: Any) -> Any:
    """int of ``tuple[int, int]``; int | None of ``tuple[int, int] | None``."""
    if get_origin(hint) in (Union, UnionType):
        pair = next(each for each in get_args(hint) if each is not NoneType)
        return get_args(pair)[0] | None
    return get_args(hint)[0]


# --- types -----------------------------------------------------------------------------------------------------------


def whole(value: Json) -> int:
    """A whole number that is none of JSON's truth values, in the range of 64 bits."""
    if type(value) is not int or not -LARGEST <= value < 2 * LARGEST:
        raise ValueError("not a whole number")
    return value


def count(value: Json) -> int:
    """A whole number that is not below 0."""
    if whole(value) < 0:
        raise ValueError("below 0")
    return int(value)


def _time(value: Json) -> int:
    if count(value) >= LARGEST:  # it is a signed number in other languages
        raise ValueError("too large")
    return int(value)


def _number(value: Json) -> float:
    if type(value) not in (int, float) or abs(value) >= 2 * LARGEST:
        raise ValueError("not a number")
    return float(value)


def _exactly(kind: type, error: str) -> Callable[[Json], Any]:
    def read(value: Json) -> Any:
        if type(value) is not kind:
            raise ValueError(error)
        return value

    return read


def _histogram(value: Json) -> Histogram:
    found = histogram_from_json(value)
    if whole(found.sum_ns) < 0:
        raise ValueError("sum_ns is less than 0")
    return found


def _same(value: Any) -> Any:
    return value


_text = _exactly(str, "not a text")
COUNT = Codec(int, count, lambda: {"type": "integer", "minimum": 0})
TIME = Codec(int, _time, COUNT.schema)
_SIMPLE: Mapping[Any, Codec] = {
    int: COUNT,
    float: Codec(float, _number, lambda: {"type": "number"}),
    str: Codec(_same, _text, lambda: {"type": "string"}),
    bool: Codec(bool, _exactly(bool, "neither true nor false"), lambda: {"type": "boolean"}),
    Histogram: Codec(histogram_json, _histogram, lambda: {"$ref": "#/$defs/histogram"}),
}


def codec_of(hint: Any) -> Codec:
    """How values with this annotation are written.  TypeError for one that has no place in a frame."""
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and NoneType in inner and len(inner) == 2:
        return _or_null(codec_of(next(each for each in inner if each is not NoneType)))
    if origin is Literal:
        return _one_of(inner)
    if origin is Mapping and inner[0] is str:
        return _table_of(codec_of(inner[1]))
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return _list_of(codec_of(inner[0]))
    if isinstance(hint, type) and issubclass(hint, Part):
        return Codec(lambda part: part.to_json(), hint.from_json, lambda: part_schema(hint))
    raise TypeError(f"{hint} has no place in a frame")


def _or_null(codec: Codec) -> Codec:
    def schema() -> Schema:
        inner = codec.schema()
        if "enum" in inner:
            return {**inner, "enum": [*inner["enum"], None]}
        if isinstance(inner.get("type"), str) and not {"properties", "items"} & inner.keys():
            return {**inner, "type": [inner["type"], "null"]}
        return {"anyOf": [inner, {"type": "null"}]}

    return Codec(
        lambda value: None if value is None else codec.write(value),
        lambda value: None if value is None else codec.read(value),
        schema,
    )


def _one_of(words: tuple[str, ...]) -> Codec:
    def read(value: Json) -> Any:
        if value not in words:
            raise ValueError(f"{units.clean(str(value), 40)!r} is none of {', '.join(words)}")
        return value

    return Codec(_same, read, lambda: {"enum": list(words)})


def _list_of(codec: Codec) -> Codec:
    def read(value: Json) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError("not a list")
        return tuple(codec.read(each) for each in value)

    return Codec(
        lambda values: [codec.write(each) for each in values],
        read,
        lambda: {"type": "array", "items": codec.schema()},
    )


def _table_of(codec: Codec) -> Codec:
    def read(value: Json) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError("not a table")
        return {_text(name): codec.read(each) for name, each in value.items()}

    return Codec(
        lambda values: {name: codec.write(each) for name, each in values.items()},
        read,
        lambda: {"type": "object", "additionalProperties": codec.schema()},
    )


# --- the schema and the page -----------------------------------------------------------------------------------------


def part_schema(kind: Any) -> Schema:
    """JSON Schema of a part."""
    fields = described(kind)
    closed = [f for f in fields if not f.spec.open]
    needed = [f.name for f in closed if not (f.spec.absent or f.derived or f.optional)]
    schema: Schema = {"type": "object", "properties": {f.name: field_schema(f) for f in closed}}
    return {**schema, "required": needed} if needed else schema


def field_schema(f: Described) -> Schema:
    """JSON Schema of one field, with what it is."""
    inner = f.codec.schema()
    text = f"{f.spec.text}, {f.spec.unit}" if f.spec.unit else f.spec.text
    return {"description": text, **inner} if "$ref" not in inner else {"description": text, "allOf": [inner]}


def _inner_part(hint: Any) -> type[Part] | None:
    if isinstance(hint, type) and issubclass(hint, Part):
        return hint
    return next((found for each in get_args(hint) if (found := _inner_part(each)) is not None), None)
