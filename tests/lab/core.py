"""The lab itself: it builds networks, remembers what it made, and takes all of it away."""

import atexit
import functools
import itertools
import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType

from lab import names, shell
from lab.errors import LabError, NotOursError
from lab.namespace import Endpoint, Namespace
from lab.wire import Direction, Wire, start_forwarder

ROOT = Namespace(None)

# Quiet and quick: no duplicate address detection and no router solicitation, so that addresses work at once
# and no packet is sent but by the test; every address answers, whatever the way back (crafted sources have
# none).
SETTINGS: dict[str, str | int] = {
    "ipv6.conf.all.accept_dad": 0,
    "ipv6.conf.default.accept_dad": 0,
    "ipv6.conf.default.router_solicitations": 0,
    "ipv6.conf.default.mldv2_unsolicited_report_interval": 0,
    "ipv4.conf.all.rp_filter": 0,
    "ipv4.conf.default.rp_filter": 0,
    "ipv4.ip_local_port_range": "10000 65000",
    "ipv4.ping_group_range": "0 2147483647",
    # Room for the whole window of a bulk flow over a long wire.
    "ipv4.tcp_rmem": "4096 131072 33554432",
    "ipv4.tcp_wmem": "4096 65536 33554432",
    # In every kernel, and the same whatever the machine prefers.
    "ipv4.tcp_congestion_control": "reno",
}


@dataclass(frozen=True)
class Link:
    """Two ends joined by a veth pair or a wire.

    `a` is the end that tests watch; `number` its address block.
    """

    a: Endpoint
    b: Endpoint
    number: int
    wire: Wire | None = None


@dataclass(frozen=True)
class Router:
    """Client - router - server: `inner` joins client (a) to router (b), `outer` router (a) to server (b)."""

    inner: Link
    outer: Link

    @property
    def client(self) -> Endpoint:
        return self.inner.a

    @property
    def server(self) -> Endpoint:
        return self.outer.b

    @property
    def client_side(self) -> Endpoint:
        """The router's interface towards the client."""
        return self.inner.b

    @property
    def server_side(self) -> Endpoint:
        """The router's interface towards the server."""
        return self.outer.a

    @property
    def ns(self) -> Namespace:
        return self.outer.a.ns


class Lab:
    """A context manager that owns every namespace, interface and process made through it.

    Close it (or leave its `with`) and they go, newest first, whatever failed before. A run that is killed
    leaves them to `names.sweep`.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._interfaces: set[tuple[str | None, str]] = set()
        self._namespaces: set[str] = set()
        names.register_run()
        atexit.register(self.close)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away. A second call does nothing."""
        atexit.unregister(self.close)
        try:
            self._stack.close()
        finally:
            self._interfaces.clear()
            self._namespaces.clear()

    def on_close(self, function: Callable[[], object]) -> None:
        """Call this when the lab closes, before what was made earlier goes."""
        self._stack.callback(function)

    def check(self, ns: Namespace, interface: str | None) -> None:
        """Refuse (`NotOursError`) an interface that this lab did not make.

        Inside a namespace of ours everything is ours. In the machine's own namespace only interfaces that we
        made are, and names that do not exist; no name at all would mean the default route's interface.
        """
        if ns.name is not None:
            if ns.name not in self._namespaces:
                raise NotOursError(f"namespace {ns.name} is not one of this lab")
            return
        if interface is None:
            raise NotOursError("no interface named: that would be the machine's default route")
        if (None, interface) in self._interfaces:
            return
        if any(link["ifname"] == interface for link in _links(ROOT)):
            raise NotOursError(f"interface {interface} is not one of this lab")

    def spawn(self, ns: Namespace, *argv: str, on_line: Callable[[str], None] | None = None) -> shell.Process:
        """Start a command in a namespace; it is stopped when the lab closes, if it was not before."""
        process = ns.spawn(*argv, on_line=on_line)
        self._stack.callback(process.stop)
        return process

    def namespace(self, role: str = "n") -> Namespace:
        """A namespace with loopback up and the quiet settings above.

        `role`: one or two letters for its name.
        """
        name = names.fresh(role)
        shell.run(["ip", "netns", "add", name])
        self._namespaces.add(name)
        self._stack.callback(self._delete_namespace, name)
        ns = Namespace(name)
        for key, value in SETTINGS.items():
            ns.sysctl(key, value)
        shell.run(["ip", "-n", name, "link", "set", "lo", "up"])
        return ns

    def veth(self, *, host: bool = False, a: Namespace | None = None, b: Namespace | None = None) -> Link:
        """A veth pair between two namespaces, new ones unless given.

        `host` puts `a` into the machine's own namespace: a container seen from its host.
        Neighbours are permanent, so there is no ARP.
        """
        ns_a = ROOT if host else a or self.namespace("a")
        ns_b = b or self.namespace("b")
        number = self._claim_block()
        end_a = _endpoint(ns_a, names.fresh("v"), number, 1)
        end_b = _endpoint(ns_b, names.fresh("w"), number, 2)
        shell.run(_veth(end_a, end_b))
        self._interfaces |= {(ns_a.name, end_a.name), (ns_b.name, end_b.name)}
        # Namespaces die asynchronously, and a pair with an end in the root namespace would outlive its lab a
        # while.
        self._stack.callback(self.delete_interface, end_a)
        link = Link(end_a, end_b, number)
        _configure(link)
        return link

    def wire(
        self,
        a_to_b: Direction | None = None,
        b_to_a: Direction | None = None,
        *,
        a: Namespace | None = None,
        b: Namespace | None = None,
    ) -> Link:
        """Two TAPs joined by a forwarder that delays each packet by a known time. Default: 5 ms each way."""
        ends = (a or self.namespace("a"), b or self.namespace("b"))
        forward = a_to_b or Direction(delay_ms=5.0)
        return self._wires([(ends, (forward, b_to_a or forward))])[0]

    def router(self) -> Router:
        """Client - router - server over two veth pairs, forwarding both IP versions."""
        client, middle, server = self._three()
        router = Router(self.veth(a=client, b=middle), self.veth(a=middle, b=server))
        _route(router)
        return router

    def wired_router(self, inner: Direction | None = None, outer: Direction | None = None) -> Router:
        """Client - wire - router - wire - server. Default: 5 ms each way inside, 20 ms each way outside."""
        client, middle, server = self._three()
        inner = inner or Direction(delay_ms=5.0)
        outer = outer or Direction(delay_ms=20.0)
        links = self._wires([((client, middle), (inner, inner)), ((middle, server), (outer, outer))])
        router = Router(links[0], links[1])
        _route(router)
        return router

    def delete_interface(self, end: Endpoint) -> None:
        """Delete one of our interfaces (its peer goes with it). Nothing happens if it has gone already."""
        self.check(end.ns, end.name)
        shell.run([*_ip(end.ns), "link", "del", end.name], check=False)

    def recreate(self, link: Link) -> None:
        """Make a deleted veth pair again, under the same names and addresses."""
        for end in (link.a, link.b):
            self.check(end.ns, end.name)
        shell.run(_veth(link.a, link.b))
        _configure(link)

    def _wires(
        self, wires: Sequence[tuple[tuple[Namespace, Namespace], tuple[Direction, Direction]]]
    ) -> list[Link]:
        numbers = [self._claim_block() for _ in wires]
        pairs = [
            (_endpoint(a, names.fresh("t"), number, 1), _endpoint(b, names.fresh("u"), number, 2))
            for number, ((a, b), _) in zip(numbers, wires, strict=True)
        ]
        process = start_forwarder(pairs, [directions for _, directions in wires])
        self._stack.callback(process.stop)
        links = []
        for index, ((end_a, end_b), number) in enumerate(zip(pairs, numbers, strict=True)):
            self._interfaces |= {(end_a.ns.name, end_a.name), (end_b.ns.name, end_b.name)}
            for end in (end_a, end_b):
                # A burst must wait in the TAP's ring (500 packets by default) until the forwarder has read
                # it.
                shell.run([*_ip(end.ns), "link", "set", end.name, "address", end.mac, "txqueuelen", "8192"])
            links.append(Link(end_a, end_b, number, Wire(process, index)))
            _configure(links[-1])
        return links

    def _three(self) -> tuple[Namespace, Namespace, Namespace]:
        return self.namespace("c"), self.namespace("r"), self.namespace("s")

    def _claim_block(self) -> int:
        number = names.claim_block()
        self._stack.callback(names.release_block, number)
        return number

    def _delete_namespace(self, name: str) -> None:
        for pid in shell.run(["ip", "netns", "pids", name], check=False).stdout.split():
            # A child of a child that nobody stopped. It runs in a namespace that only we made.
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        shell.run(["ip", "netns", "del", name], check=False)


def _endpoint(ns: Namespace, name: str, number: int, host: int) -> Endpoint:
    mac = f"02:4e:54:{number:02x}:00:{host:02x}"
    return Endpoint(ns, name, mac, f"10.77.{number}.{host}", f"fd77:0:0:{number:x}::{host}")


def _ip(ns: Namespace) -> list[str]:
    return ["ip"] if ns.name is None else ["ip", "-n", ns.name]


def _place(end: Endpoint) -> list[str]:
    return ["address", end.mac, *([] if end.ns.name is None else ["netns", end.ns.name])]


def _veth(a: Endpoint, b: Endpoint) -> list[str]:
    return ["ip", "link", "add", a.name, *_place(a), "type", "veth", "peer", b.name, *_place(b)]


def _links(ns: Namespace) -> list[dict[str, object]]:
    links: list[dict[str, object]] = json.loads(shell.run([*_ip(ns), "-j", "link"]).stdout)
    return links


def _configure(link: Link) -> None:
    """Addresses, links up, permanent neighbours, and wait until both sides have carrier."""
    for end, peer in itertools.permutations((link.a, link.b)):
        batch = [
            f"addr add {end.v4}/24 dev {end.name}",
            f"addr add {end.v6}/64 dev {end.name} nodad",
            f"link set {end.name} up",
            f"neigh replace {peer.v4} lladdr {peer.mac} dev {end.name} nud permanent",
            f"neigh replace {peer.v6} lladdr {peer.mac} dev {end.name} nud permanent",
        ]
        shell.run([*_ip(end.ns), "-batch", "-"], stdin="\n".join(batch) + "\n")
    for end in (link.a, link.b):
        if not shell.eventually(functools.partial(_is_up, end)):
            raise LabError(f"{end.name} has no carrier")


def _is_up(end: Endpoint) -> bool:
    flags = json.loads(shell.run([*_ip(end.ns), "-j", "link", "show", "dev", end.name]).stdout)[0]["flags"]
    return "LOWER_UP" in flags


def route_by(gateway: Endpoint, *ends: Endpoint) -> None:
    """Let the gateway's namespace forward, and make it the default route of these ends."""
    gateway.ns.sysctl("ipv4.ip_forward", 1)
    gateway.ns.sysctl("ipv6.conf.all.forwarding", 1)
    for end in ends:
        if end.ns.name is None:
            raise NotOursError("the default route belongs to the machine")
        batch = [f"route add default via {gateway.v4}", f"route add ::/0 via {gateway.v6}"]
        shell.run([*_ip(end.ns), "-batch", "-"], stdin="\n".join(batch) + "\n")


def _route(router: Router) -> None:
    route_by(router.client_side, router.client)
    route_by(router.server_side, router.server)
