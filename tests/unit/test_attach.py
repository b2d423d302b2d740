"""What the user is told where the kernel refuses a map or an attachment, and whether it is tried again."""

from __future__ import annotations

import errno
import os
from unittest.mock import Mock

import pytest

from nettop.bpf import syscall
from nettop.bpf.hooks import Hook, one
from nettop.bpf.protocol import Plan
from nettop.core.errors import NettopError
from nettop.loader import attach
from nettop.loader.compile import MapSpec, Object
from nettop.loader.mechanisms import Target


def failure(number):
    return OSError(number, os.strerror(number))


def test_a_map_that_is_refused_says_its_size_and_what_helps(monkeypatch):
    """ENOMEM is what a memory cgroup gives."""
    monkeypatch.setattr(syscall, "map_create", Mock(side_effect=failure(errno.ENOMEM)))
    made = attach.Attached("flows", Object((MapSpec("flows", 9, 40, 96, 1, 0),), {}, entries=("flows",)))
    with pytest.raises(NettopError) as caught:
        attach.make_maps(made, Plan("eth0", ("flows",), (("flows.flows", 4711),)))
    assert caught.value.message == f"cannot make the map flows (4711 entries): {os.strerror(errno.ENOMEM)}"
    assert caught.value.hint == "--max-flows makes the largest smaller"


HOOK = (
    one("tp_btf", "softirq_entry", "softirq_entry"),
    one("raw_tracepoint", "softirq_entry", "softirq_entry"),
)


@pytest.mark.parametrize(
    ("first", "second", "again"),
    [
        (errno.EINVAL, errno.ENOENT, False),
        (errno.EOPNOTSUPP, errno.EACCES, False),
        (errno.EINVAL, errno.EBUSY, True),
        (errno.ENOMEM, errno.ENOENT, True),
        (errno.EAGAIN, errno.EAGAIN, True),
        (errno.ENODEV, errno.ENODEV, True),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_what_may_work_later_is_tried_again(monkeypatch, first, second, again, required):
    """A probe of one hook, whose mechanisms all fail."""
    monkeypatch.setattr(attach, "_try", Mock(side_effect=[failure(first), failure(second)]))
    hook = Hook("softirq_entry", HOOK, required)
    probe = attach.Attached("irq", Object((), {"softirq_entry": b""}, (hook,)))
    attach.attach(probe, Target("lo", 1))
    reason = f"softirq_entry: tp_btf: {os.strerror(first)}; raw_tracepoint: {os.strerror(second)}"
    if again:
        with pytest.raises(NettopError) as caught:
            attach.check(probe)
        assert caught.value.message == reason
    else:
        attach.check(probe)
        info = attach.report(probe).probe
        assert (info.state, info.detail) == ("unavailable", reason)


def test_a_hook_that_can_be_done_without_fails_no_probe(monkeypatch):
    def refuse(probe, hook, candidate, _):
        if hook.name == "second":
            raise failure(errno.EBUSY)
        probe.links[hook.name], probe.via[hook.name] = [], candidate

    monkeypatch.setattr(attach, "_try", refuse)
    monkeypatch.setattr(attach, "load", lambda *_: 0)
    hooks = (Hook("first", HOOK[:1], required=True), Hook("second", HOOK))
    probe = attach.Attached("irq", Object((), {"softirq_entry": b""}, hooks))
    attach.attach(probe, Target("lo", 1))
    attach.check(probe)
    assert attach.report(probe).probe.state == "live"
    assert set(probe.missing) == {"second"}
