"""C types as the compiler describes them: what numpy reads and what is packed by name, and what is refused."""

import struct

import numpy as np
import pytest

from nettop.bpf import c_layout
from nettop.bpf.config import Config
from nettop.bpf.layout import Map, dtype_of, layout_of
from nettop.bpf.maps import open_maps
from nettop.bpf.protocol import MapInfo

# As BCC 0.26 gives them.
PLAIN = '["in", [["x","unsigned char"], ["__pad_1","char",[3]], ["y","unsigned int"] ], "struct_packed"]'
NESTED = f'["t", [["i",{PLAIN}, [3]], ["tail","unsigned char"], ["__pad_end","char",[3]] ], "struct_packed"]'
UNION = '["u", [["a","unsigned int"], ["b","unsigned long long"], ["c","unsigned char", [12]] ], "union"]'
MIXED = (
    f'["t2", [["u",{UNION}], ["q","unsigned char"], ["__pad_2","char",[3]], ["c","unsigned int"], '
    '["p","unsigned long long"], ["f","_Bool"], ["__pad_5","char",[3]], ["neg","int"], ["neg8","long long"], '
    '["sc","signed char"], ["__pad_8","char",[1]], ["sh","short"], ["__pad_end","char",[4]] ], "struct_packed"]'
)
UNNAMED = (
    '["t3", [["a","unsigned int"], ["__pad_1","char",[4]], ["", [["b","unsigned int"], ["__pad_1","char",[4]], '
    '["c","unsigned long long"] ], "struct_packed"], ["", [["d","unsigned char"], ["e","unsigned int"] ], "union"], '
    '["__pad_end","char",[4]] ], "struct_packed"]'
)
OPEN_END = (
    f'["t12", [["a","unsigned long long"], ["v","unsigned int"], ["u",{UNION}, [2]], ["name","char", [5]], '
    '["t","unsigned short"] ], "struct"]'
)
BITS = '["t4", [["a","unsigned int", 3], ["b","unsigned int", 5], ["c","unsigned long long"] ], "struct"]'
ARRAY_OF_ARRAYS = '["t1", [["a","unsigned int"], ["m","unsigned int", [2]] ], "struct_packed"]'  # u32 m[2][3]


def offsets(description: str) -> dict[str, int]:
    kind = c_layout.parse(description)
    assert isinstance(kind, c_layout.Struct)
    dtype = dtype_of(description)
    assert dtype.fields
    assert dtype.itemsize == kind.size
    found = {name: field.offset for name, field in kind.fields.items()}
    assert found == {name: offset for name, (_, offset, *_) in dtype.fields.items()}
    return found


@pytest.mark.parametrize(
    ("description", "places", "size"),
    [
        (PLAIN, {"x": 0, "y": 4}, 8),
        (NESTED, {"i": 0, "tail": 24}, 28),
        (UNION, {"a": 0, "b": 0, "c": 0}, 16),
        (MIXED, {"u": 0, "q": 16, "c": 20, "p": 24, "f": 32, "neg": 36, "neg8": 40, "sc": 48, "sh": 50}, 56),
        (UNNAMED, {"a": 0, "b": 8, "c": 16, "d": 24, "e": 24}, 32),
        (OPEN_END, {"a": 0, "v": 8, "u": 16, "name": 48, "t": 54}, 56),
    ],
)
def test_fields_are_where_the_compiler_puts_them(description: str, places: dict[str, int], size: int) -> None:
    assert offsets(description) == places
    assert c_layout.parse(description).size == size


def test_types_are_numpys() -> None:
    mixed = dtype_of(MIXED)
    assert [mixed[name].str for name in ("q", "c", "p", "f", "neg", "neg8", "sc", "sh")] == [
        "|u1", "<u4", "<u8", "|b1", "<i4", "<i8", "|i1", "<i2"
    ]  # fmt: skip
    assert dtype_of(NESTED)["i"].shape == (3,)
    assert dtype_of(OPEN_END)["name"] == np.dtype("S5")
    assert dtype_of('"unsigned int"') == np.dtype("u4")


@pytest.mark.parametrize("text", [BITS, "", "{}", '"wchar_t"', '["x"]', '["x", [["a"]], "struct_packed"]'])
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bit field" if text == BITS else "not a description"):
        c_layout.parse(text)


def test_what_is_packed_by_name_is_what_numpy_reads() -> None:
    value = {"i": [{"x": 1, "y": 2}, {}, {"y": 0xFFFFFFFF}], "tail": 9}
    read = np.frombuffer(c_layout.pack(c_layout.parse(NESTED), value), dtype_of(NESTED))[0]
    assert read["i"].tolist() == [(1, 2), (0, 0), (0, 0xFFFFFFFF)]
    assert read["tail"] == 9
    assert c_layout.pack(c_layout.parse(UNION), {"c": b"abc"})[:4] == b"abc\0"
    assert c_layout.pack(c_layout.parse(UNNAMED), {"c": 2**63, "e": 7}) == struct.pack("=16xQI4x", 2**63, 7)
    assert c_layout.pack(c_layout.parse('"int"'), -2) == struct.pack("=i", -2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"other": 1}, "struct t has no other"),
        ({"i": [{"z": 1}]}, "struct in has no z"),
        ({"i": [{}] * 4}, "no room"),
        ({"i": bytes(25)}, "no room"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        c_layout.pack(c_layout.parse(NESTED), value)


def test_a_config_for_other_programs_is_refused() -> None:
    with pytest.raises(
        ValueError, match="struct in has no ifindex: program and module do not belong together"
    ):
        Config().pack(PLAIN)
    config = Config(ifindex=3, l2_len=0, flags=5)
    assert Config.from_json(config.to_json()) == config


def info(description: str, size: int, name: str = "flows") -> MapInfo:
    return MapInfo(name, 1, 4, size, 16, 0, '"unsigned int"', description)


def test_a_map_must_have_what_its_module_reads() -> None:
    assert layout_of(info(NESTED, 28), Map("flows", "hash", "i.x i.y tail")).value == dtype_of(NESTED)
    with pytest.raises(ValueError, match=r"value of the map flows has no i\.z, end: program and module"):
        layout_of(info(NESTED, 28), Map("flows", "hash", "i.x i.z tail end"))
    with pytest.raises(ValueError, match="key of the map flows has no port"):
        layout_of(info(NESTED, 28), Map("flows", "hash", keys="port"))
    with pytest.raises(ValueError, match="no map other"):
        open_maps((Map("other", "none"),), (info(NESTED, 28),), (-1,))
    readers, layouts = open_maps((Map("flows", "none"),), (info(NESTED, 28),), (-1,))
    assert (readers, list(layouts)) == ({}, ["flows"])


def test_a_ring_must_say_what_its_events_are() -> None:
    """BCC's own macro gives u32 (BPF_RINGBUF_OUTPUT)."""
    assert layout_of(info(PLAIN, 0), Map("flows", "ring", "x y")).value.itemsize == 8
    with pytest.raises(ValueError, match="declare it by RINGBUF"):
        layout_of(info('"unsigned int"', 0), Map("flows", "ring", "x y"))


def test_a_description_that_lacks_a_part_is_found_out() -> None:
    """BCC says nothing of an array's further dimensions."""
    with pytest.raises(ValueError, match="has 28 bytes, and 12 by its description"):
        layout_of(info(ARRAY_OF_ARRAYS, 28), Map("flows", "hash"))
