"""Names by reverse DNS: nobody waits, answers are data, failures are silent."""

from __future__ import annotations

import socket
import threading
import time
from unittest.mock import Mock

import pytest
from fakes import packed
from hypothesis import given
from hypothesis import strategies as st
from lab.shell import eventually

from nettop.ui import reverse_dns
from nettop.ui.reverse_dns import KEEP_NONE_S, KEEP_S, MOST, WAITING, ReverseDns, checked, resolve


def test_a_name_is_there_some_time_after_it_was_asked_for():
    asked: list[str] = []
    made = ReverseDns(lambda address: asked.append(address) or "web.example.")
    assert made.of(packed("192.0.2.7")) == ""
    assert eventually(lambda: made.of(packed("192.0.2.7")) == "web.example")
    assert made.of(packed("2001:db8::7")) == ""
    assert eventually(lambda: made.of(packed("2001:db8::7")) == "web.example")
    assert asked == ["192.0.2.7", "2001:db8::7"]
    assert made.changed == 2


@pytest.mark.timing
def test_nobody_waits_for_a_resolver_that_hangs():
    """And the interpreter ends without it: its threads are daemons."""
    go = threading.Event()
    made = ReverseDns(lambda address: go.wait(60) and "late.example")  # type: ignore[return-value, arg-type]
    start = time.monotonic()
    for host in range(2000):
        assert made.of(packed(f"198.51.{host // 250}.{host % 250}")) == ""
    assert time.monotonic() - start < 2
    assert made._queue.qsize() <= WAITING
    threads = [t for t in threading.enumerate() if t.name == "nettop-names"]
    assert all(t.daemon for t in threads)
    go.set()
    assert eventually(lambda: made.of(packed("198.51.0.0")) == "late.example")


def test_failures_are_silent_and_not_asked_for_again_and_again():
    clock = [0.0]
    fail = Mock(side_effect=socket.gaierror(-2, "Name or service not known"))
    made = ReverseDns(fail, clock=lambda: clock[0])
    made.of(packed("192.0.2.1"))
    assert eventually(lambda: made.changed == 1)
    for _ in range(10):
        assert made.of(packed("192.0.2.1")) == ""
    assert fail.call_count == 1
    clock[0] = KEEP_NONE_S + 1
    made.of(packed("192.0.2.1"))
    assert eventually(lambda: fail.call_count == 2)


def test_an_old_name_holds_until_there_is_a_new_one():
    answers = iter(["old.example", "new.example"])
    clock, go = [0.0], threading.Event()

    def ask(address: str) -> str:
        answer = next(answers)
        if answer == "new.example":
            go.wait(10)
        return answer

    made = ReverseDns(ask, clock=lambda: clock[0])
    made.of(packed("192.0.2.1"))
    assert eventually(lambda: made.of(packed("192.0.2.1")) == "old.example")
    clock[0] = KEEP_S + 1
    assert made.of(packed("192.0.2.1")) == "old.example"
    go.set()
    assert eventually(lambda: made.of(packed("192.0.2.1")) == "new.example")


@pytest.mark.parametrize(
    "failure", [UnicodeError("label too long"), ValueError("x"), MemoryError(), RuntimeError()]
)
def test_a_resolver_may_fail_as_it_likes(failure):
    made = ReverseDns(Mock(side_effect=failure))
    made.of(packed("192.0.2.1"))
    assert eventually(lambda: made.changed == 1)
    assert made.of(packed("192.0.2.1")) == ""


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("db-3.example.org", "db-3.example.org"),
        ("db-3.example.org.", "db-3.example.org"),
        ("_srv.x", "_srv.x"),
        ("a" * 253, "a" * 253),
        ("a" * 254, ""),
        ("10.0.0.1", ""),  # it would pass for another address
        ("1.2.3.4.", ""),
        ("\x1b]0;evil\x07", ""),
        ("evil\u202etxt.exe", ""),
        ("a b", ""),
        ("a\nb", ""),
        ("ｅxample", ""),
        ("-rf", ""),
        ("[red]x", ""),
        ("fe80::1", ""),
        ("", ""),
        (".", ""),
    ],
)
def test_an_answer_is_data(answer, shown):
    assert checked(answer) == shown


@given(st.text(max_size=300))
def test_whatever_is_answered_is_a_host_or_nothing(answer):
    shown = checked(answer)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 253
    assert " " not in shown


@pytest.mark.parametrize("address", ["224.0.0.251", "255.255.255.255", "ff02::1", "::", "0.0.0.0"])
def test_what_no_host_has_is_not_asked_for(address):
    ask = Mock()
    made = ReverseDns(ask)
    made.of(packed(address))
    assert eventually(lambda: made.changed == 1)
    assert not ask.called


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(reverse_dns, "MOST", 50)
    made = ReverseDns(lambda text: "x.example")
    for host in range(200):
        made.of(packed(f"192.0.2.{host}"))
        assert eventually(lambda: made._queue.empty())
    assert len(made._answers) <= 50
    assert MOST >= 1000


def test_the_systems_resolver_knows_the_loopback():
    """/etc/hosts has it, so no packet is sent."""
    assert resolve("127.0.0.1").startswith("localhost")
