"""Where panes go on terminals of every size."""

from dataclasses import replace

import frames
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.ui.layout import MIN_HEIGHT, MIN_WIDTH, arrange, too_small

PANES = sorted((pane for probe in frames.PROBES for pane in probe.panes), key=lambda p: p.number)
NAMES = [pane.name for pane in PANES]


@given(
    st.integers(MIN_WIDTH, 300),
    st.integers(MIN_HEIGHT - 2, 120),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.booleans(),
)
def test_boxes_tile_the_screen(width, height, focused, chosen, zoomed):
    boxes = arrange(PANES, width, height, focused, chosen, zoomed)
    covered = [[0] * width for _ in range(height)]
    for box in boxes.values():
        for y in range(box.y, box.y + box.height):
            for x in range(box.x, box.x + box.width):
                covered[y][x] += 1
    assert all(count == 1 for row in covered for count in row)


def test_a_large_terminal_has_everything_in_three_bands():
    boxes = arrange(PANES, 120, 38, "flows", "rtt", False)
    assert list(boxes) == ["throughput", "rtt", "flows", "stages", "irq"]
    assert not any(box.compact for box in boxes.values())
    assert boxes["throughput"].y == boxes["rtt"].y == 0
    assert boxes["flows"].width == 120
    assert boxes["flows"].height >= 17


def test_at_80x24_throughput_is_two_lines_and_one_of_the_others_is_there():
    for chosen in ("rtt", "stages", "irq"):
        boxes = arrange(PANES, 80, 22, "flows", chosen, False)
        assert set(boxes) == {"throughput", "flows", chosen}
        assert boxes["throughput"].compact
        assert boxes["throughput"].height == 2
        assert boxes["flows"].height >= 8


def test_compact_forms_below_the_top_do_not_take_the_place_of_panes():
    others = [replace(p, compact=lambda h, c: []) if p.band == "bottom" else p for p in PANES]
    assert arrange(others, 80, 22, "stages", "stages", False) == arrange(
        PANES, 80, 22, "stages", "stages", False
    )


def test_zoomed_a_pane_has_it_all():
    assert arrange(PANES, 80, 22, "rtt", "rtt", True)["rtt"].height == 22


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("height", [8, 10, 14, 22, 30, 38])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_pane_in_focus_is_on_the_screen(name, width, height):
    chosen = name if name not in ("throughput", "flows") else "rtt"
    boxes = arrange(PANES, width, height, name, chosen, False)
    assert name in boxes


def test_no_room_is_no_room():
    assert too_small(MIN_WIDTH - 1, 40)
    assert too_small(120, MIN_HEIGHT - 1)
    assert not too_small(MIN_WIDTH, MIN_HEIGHT)
