"""Reverse DNS against a real server, by a process that has no privilege left."""

import json
import pwd
import signal
from pathlib import Path

from lab import Lab, Link
from lab.program import REPOSITORY, interpreter
from lab.shell import run
from lab.traffic import wait_listening

NOBODY = pwd.getpwnam("nobody")
NAME = "web-7.lab.test"
SCRIPT = """
import ipaddress, json, sys, time
from nettop.ui.names import Names
names, known, evil = Names(), *(b"\\0" * 10 + b"\\xff\\xff" + ipaddress.ip_address(a).packed for a in sys.argv[1:])
first = names.of(known), names.of(evil)
end = time.monotonic() + 20
while names.changed < 2 and time.monotonic() < end:
    time.sleep(0.01)
print(json.dumps([first, names.of(known), names.of(evil), names.changed]))
"""


def test_a_name_comes_from_the_servers_answer(lab: Lab, veth: Link, tmp_path: Path) -> None:
    """The server knows one address; to another it gives a name that no host may have."""
    evil = "198.51.100.66"
    server = veth.b.ns.spawn(
        *(
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
        ),
        *("--pid-file=", "--bind-interfaces", f"--listen-address={veth.b.v4}", "--log-facility=-"),
        *(f"--host-record={NAME},{veth.b.v4}", "--ptr-record=66.100.51.198.in-addr.arpa,10.0.0.1"),
    )
    try:
        wait_listening(veth.b.ns, 53)
        resolv = tmp_path / "resolv.conf"
        resolv.write_text(f"nameserver {veth.b.v4}\noptions timeout:2 attempts:2\n")
        # A mount of its own: the machine's resolver stays as it is.
        inside = f'mount --bind {resolv} /etc/resolv.conf && cd {REPOSITORY} && exec "$@"'
        unprivileged = (
            "setpriv",
            f"--reuid={NOBODY.pw_uid}",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        )
        answer = run(
            veth.a.ns.argv(
                [
                    *(
                        "unshare",
                        "--mount",
                        "sh",
                        "-c",
                        inside,
                        "sh",
                        *unprivileged,
                        interpreter(),
                        "-c",
                        SCRIPT,
                    ),
                    *(veth.b.v4, evil),
                ]
            )
        )
    finally:
        server.stop(signal.SIGTERM)
    assert json.loads(answer.stdout) == [["", ""], NAME, "", 2]
