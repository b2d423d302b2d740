"""Connections whose ends close at once, on two CPUs: each is opened once and closed once. The guests have more CPUs."""

import os

import pytest
from lab import Lab, Nettop
from many_connections import account, claim, silence

CONNECTIONS = 10_007


@pytest.mark.alone
def test_two_fins_at_once_close_one_flow(lab: Lab) -> None:
    if os.cpu_count() == 1:
        pytest.fail("one CPU does one thing at a time: nothing can be shown here")
    link = lab.veth()
    silence(link.a, link.b)
    args = ("-d", "1", "-p", "flows", "--max-flows", "65536", "--top", "65536")
    with Nettop(lab, link.a, *args) as nettop:
        nettop.wait_frames(1, timeout=60)
        claim(account(nettop, link.a, link.b, CONNECTIONS), CONNECTIONS)
