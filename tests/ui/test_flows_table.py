"""The table of flows on the screen: its cursor, its order, its columns, and states of connections."""

from itertools import pairwise

import frames
import numpy as np
import pytest
from app_driver import running
from fakes import changed

from nettop.core.frame import Frame
from nettop.output.text import plain_lines, table_lines
from nettop.probes.flows import table as flows_table
from nettop.probes.flows.constants import FLAG_OPENED_BY_LOCAL, STATE_OPEN, STATE_RESET, STATE_SYN, TUNNELS
from nettop.render.canvas import Canvas, place_columns
from nettop.settings import Settings


async def test_the_cursor_stays_on_its_flow_while_rows_move():
    async with running() as d:
        await d.press("j", "j")
        there = d.under_cursor()
        table = frames.flow_rows(5)
        index = next(i for i, row in enumerate(table) if flows_table._endpoint(row, "remote") == there)
        table["rx_bytes"][index] = 10**10
        await d.give(with_rows(5, table))
        assert d.under_cursor() == there
        assert d.flows.at == 0


async def test_before_it_is_moved_the_cursor_stays_on_top_and_where_it_was_when_its_flow_ends():
    async with running() as d:
        table = frames.flow_rows(5)
        table["rx_bytes"][4] = 10**10
        await d.give(with_rows(5, table))
        assert d.under_cursor() == "192.0.2.61:60022"
        await d.press("j", "j", "j")
        await d.give(with_rows(6, table[table["id"] != d.flows.under]))
        assert d.flows.at == 3
        assert d.flows.under is not None


def with_rows(step: int, rows: np.ndarray) -> Frame:
    return changed(frames.frame(step), "flows", rows=rows)


def silenced(step: int, identity: int) -> Frame:
    """A frame in which a flow has fallen silent and thirty others have not, so that it is the last of all."""
    table = frames.flow_rows(step)
    table["rx_bytes"] += 1000
    table["rx_bytes"][table["id"] == identity] = 0
    table["tx_bytes"][table["id"] == identity] = 0
    return with_rows(step, table)


async def test_another_order_shows_its_first_rows_and_the_cursors_row():
    """`j j`, then another column: the largest is in view, and so is the row that the cursor is on."""
    async with running(120, 24) as d:
        await d.press("G")
        mine, table = d.under_cursor(), d.flows
        assert table.first > 0
        for _ in range(4):
            await d.press(">")
            assert table.first == 0
            assert table._shown[:3] == [0, 1, 2]
            assert table.at in table._shown
            assert d.under_cursor() == mine
        below = table.at
        await d.press("k")  # and from there it goes on, with its neighbours in view
        assert table.at == below - 1
        assert table._shown == list(range(table._shown[0], table.at + 1))


async def test_a_flow_that_falls_silent_does_not_take_the_view_with_it():
    async with running(120, 24) as d:
        await d.press("j", "j")
        table, mine = d.flows, d.under_cursor()
        identity, room = table.under, len(table._shown)
        await d.give(silenced(6, identity), silenced(7, identity))
        assert table.at == len(table._ids) - 1
        assert d.under_cursor() == mine
        assert table._shown == [*range(room - 1), table.at]
        await d.press("g")
        assert (table.at, table.first, table.pinned) == (0, 0, None)


async def test_when_it_ends_out_of_view_the_cursor_is_on_top_again():
    async with running(120, 24) as d:
        await d.press("j", "j")
        identity = d.flows.under
        await d.give(silenced(6, identity))
        rows = frames.flow_rows(7)
        await d.give(with_rows(7, rows[rows["id"] != identity]))
        assert (d.flows.at, d.flows.pinned) == (0, None)


async def test_a_page_that_was_opened_from_the_top_leaves_the_cursor_there():
    async with running() as d:
        await d.press("enter", "escape")
        assert (d.flows.at, d.flows.pinned) == (0, None)
        await d.press("j", "enter", "escape")
        assert d.flows.pinned is not None


async def test_no_flows_at_all():
    async with running(frames=[frames.frame(0, sections={"flows": frames.Flows()})]) as d:
        assert "none yet" in d.text()
        await d.press("j", "k", "G", "g", "enter", "c", "s", "escape", "S", ">", "pagedown")
        assert d.app.is_running


async def test_a_field_that_is_no_column_orders_the_rows_too():
    async with running(160, 50, options=Settings(sort="rx_bytes_total")) as d:
        assert "Flows by rx_bytes_total" in "\n".join(d.rows())
        rows = d.flows._rows[d.flows._order]["rx_bytes_total"].tolist()
        assert rows == sorted(rows, reverse=True)
        assert len(set(rows)) > 2
        await d.press("3", ">")
        assert "Flows by" not in "\n".join(d.rows())


async def test_a_click_on_a_title_sorts_and_on_a_row_moves_the_cursor():
    async with running() as d:
        table = d.flows
        titles = table.region.y + 1
        x = d.rows()[titles].index("tx/s")
        await d.pilot.click(offset=(x + 1, titles))
        await d.settle()
        assert table.column.key == "tx"
        await d.pilot.click(offset=(x, titles + 3))
        await d.settle()
        assert (table.at, table.entered) == (2, None)
        await d.pilot.click(offset=(x, titles + 3))
        await d.settle()
        assert table.entered is not None


async def test_a_click_focuses_a_pane():
    async with running() as d:
        await d.pilot.click(offset=(90, 4))
        await d.settle()
        assert d.app.state.focused == "rtt"


def test_columns_leave_by_priority_and_the_sorted_one_stays():
    wide = [p.column.key for p in place_columns(flows_table.COLUMNS, 200)]
    assert wide == [c.key for c in flows_table.COLUMNS]
    usual = tuple(c for c in flows_table.COLUMNS if c.wanted is None)
    narrow = [p.column.key for p in place_columns(usual, 74)]
    assert narrow == ["protocol", "local", "remote", "process", "rx", "tx", "rtt"]
    assert "state" in [p.column.key for p in place_columns(usual, 74, keep="state")]
    narrow = [p.column.key for p in place_columns(flows_table.COLUMNS, 74)]
    assert narrow == ["protocol", "tunnel", "remote", "rx", "tx", "rtt"]


OPENED_HERE = FLAG_OPENED_BY_LOCAL
STATES_SHOWN = {
    # state, flags, received, sent, received again, sent again, round trips: what the row says
    "refused": (STATE_RESET, OPENED_HERE, 1, 1, 0, 0, 0),
    "reset": (STATE_RESET, OPENED_HERE, 40, 40, 0, 0, 30),
    "syn": (STATE_SYN, OPENED_HERE, 0, 1, 0, 0, 0),
    "syn×4": (STATE_SYN, OPENED_HERE, 0, 4, 0, 3, 0),
    "synack×3": (STATE_OPEN, OPENED_HERE, 3, 2, 2, 0, 1),
}


def with_states() -> Frame:
    """A flow in each of these states, by its remote port, and one that is as it should be."""
    table = frames.flow_rows(5, extra=0)
    for at, (state, flags, received, sent, again_in, again_out, trips) in enumerate(STATES_SHOWN.values()):
        row = table[at : at + 1]
        row["protocol"], row["remote_port"], row["state"], row["flags"] = 6, 7001 + at, state, flags
        row["rx_packets_total"], row["tx_packets_total"] = received, sent
        row["rx_bytes_total"], row["tx_bytes_total"] = 60 * received, 60 * sent
        row["rx_retransmits"], row["tx_retransmits"] = again_in, again_out
        row["rtt"]["samples_total"] = trips
    return with_rows(5, table)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (180, 50)])
async def test_a_connection_that_failed_says_so_at_every_width(width, height):
    async with running(width, height, frames=[with_states()]) as d:
        for at, word in enumerate(STATES_SHOWN):
            text = d.line(f":{7001 + at} ")
            # Where there is no room for the count, the word alone.
            word = word if "state" in d.line("proto") else word.replace("synack×3", "synack")
            assert f" {word} " in text
            assert text.count(word.split("×")[0]) == 1
        assert " ms" in d.line(":6443 "), "the others keep their RTT"


async def test_what_failed_is_found_by_the_word_that_the_row_shows():
    async with running(80, 24, frames=[with_states()]) as d:
        await d.press("slash", *"refused", "enter")
        assert "1 match refused" in d.text()
        assert d.line(":7001 ")


def test_text_without_room_for_the_state_says_it_in_the_place_of_the_rtt():
    made = with_states()
    for width in (80, 120):
        lines = table_lines(flows_table.TABLE, made, Canvas(width, 40), 20, "")
        assert "state" not in lines[0]
        assert "refused" in next(text for text in lines if ":7001 " in text)
    plain = plain_lines(flows_table.TABLE, made, Canvas(80, 40), 20, "")
    assert "state" in plain[0]
    row = dict(zip(plain[0].split(), next(text for text in plain if ":7001 " in text).split(), strict=True))
    assert (row["state"], row["rtt"]) == ("refused", "-"), "there the state has a column"
    assert all(len(text.split()) == len(plain[0].split()) for text in plain)


async def test_the_tunnel_has_a_column_from_the_first_flow_in_one_on():
    table = frames.flow_rows(5)
    table["tunnel"][0], table["tunnel_id"][0] = TUNNELS.index("vxlan"), 4096
    table["tunnel"][1] = TUNNELS.index("pppoe")
    async with running() as d:
        assert "tunnel" not in d.line("proto")
        await d.give(with_rows(5, table))
        assert "tunnel" in d.line("proto")
        assert " vxlan 4096 " in d.line("203.0.113.7")
        assert " pppoe " in d.line("198.51.100.4")
        await d.press("slash", *"vxlan", "enter")
        assert "1 match vxlan" in d.text()
        await d.press("enter")
        assert "in vxlan 4096" in d.text()
        await d.press("escape")
        await d.give(frames.frame(6))
        assert "tunnel" in d.line("proto"), "nothing jumps when the last of them goes"


def test_columns_never_reach_beyond_the_width():
    for width in range(1, 201):
        placed = place_columns(flows_table.COLUMNS, width)
        assert all(column.x + column.width <= width for column in placed if column.width), width
        assert all(a.x + a.width < b.x for a, b in pairwise(placed) if b.width), width
