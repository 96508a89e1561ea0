"""The kernel's own ESP as the peer of esp_gw: shared parameters, and the kernel's configuration.

    a  esp_gw [esp0 10.1.N.1]  192.0.2.1 ==== wire ==== 192.0.2.2  [lo 10.2.N.1] the kernel  b

Each link N is one pair of SAs. In tunnel mode it has its own prefixes (also fd00:1:N::/64 and
fd00:2:N::/64), in transport mode its own outer addresses (192.0.2.100 + N and 192.0.2.200 + N).
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyroute2 import netns

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, namespaces, wire
from esp_gw.model import (
    AES_GCM,
    AES_GMAC,
    CHACHA20_POLY1305,
    DEFAULT_SUITE,
    Encapsulation,
    Mode,
    Suite,
)

TIMEOUT = 30.0
_UDP_ENCAP = 100
_UDP_ENCAP_ESPINUDP = 2
_AEAD = {
    AES_GCM: "rfc4106(gcm(aes))",
    AES_GMAC: "rfc4543(gcm(aes))",
    CHACHA20_POLY1305: "rfc7539esp(chacha20,poly1305)",
}
_WAYS = ("in", "out")
_OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


# A policy for a neighbour's address also matches its neighbour discovery, which can't work
# protected, and the UDP that carries ESP: the kernel checks policies before decapsulation.
_BYPASSED = [
    *((f"src ::/0 dst ::/0 proto 58 type {kind}", way) for kind in (135, 136) for way in _WAYS),
    *((f"src {every} dst {every} proto udp dport 4500", "in") for every in ("0.0.0.0/0", "::/0")),
]


@dataclass(frozen=True)
class Link:
    """One pair of SAs between esp_gw (side 0) and the kernel (side 1)."""

    number: int
    mode: Mode = Mode.TUNNEL
    encapsulation: Encapsulation = Encapsulation.UDP
    version: int = 4
    suite: Suite = DEFAULT_SUITE
    esn: bool = True
    kernel_window: int = 128
    replay_window: int = 1024
    keys: tuple[str, str] = field(default=("", ""), compare=False, repr=False)

    def __str__(self) -> str:
        esp = "udp" if self.encapsulation is Encapsulation.UDP else "esp"
        esn = "esn" if self.esn else "no-esn"
        shape = f"{self.mode}-ipv{self.version}-{esp}-{self.suite}-{esn}"
        return f"{shape}-window-{self.replay_window}-{self.kernel_window}"

    @property
    def words(self) -> str:
        """The configuration of both ends in words, for docs/interop.md."""
        esp = "ESP in UDP" if self.encapsulation is Encapsulation.UDP else "ESP"
        esn = "ESN" if self.esn else "no ESN"
        windows = f"windows {self.replay_window} and {self.kernel_window}"
        return f"{self.mode}, IPv{self.version}, {esp}, {self.suite}, {esn}, {windows}"

    @property
    def outer(self) -> tuple[str, str]:
        if self.mode is Mode.TUNNEL:
            return _OUTER[self.version]
        if self.version == 4:
            return f"192.0.2.{100 + self.number}", f"192.0.2.{200 + self.number}"
        return f"2001:db8::1:{self.number}", f"2001:db8::2:{self.number}"

    @property
    def inner_versions(self) -> tuple[int, ...]:
        return (4, 6) if self.mode is Mode.TUNNEL else (self.version,)

    def inner(self, side: int, version: int) -> str:
        """The inner address of a side."""
        if self.mode is Mode.TRANSPORT:
            return self.outer[side]
        if version == 4:
            return f"10.{side + 1}.{self.number}.1"
        return f"fd00:{side + 1}:{self.number}::1"

    def net(self, side: int, version: int) -> str:
        """The prefix of a side's selectors."""
        if self.mode is Mode.TRANSPORT:
            return f"{self.outer[side]}/{32 if version == 4 else 128}"
        if version == 4:
            return f"10.{side + 1}.{self.number}.0/24"
        return f"fd00:{side + 1}:{self.number}::/64"

    @property
    def least_payload(self) -> int:
        """The shortest transport payload from esp_gw that the kernel doesn't drop.

        With ESP in UDP over IPv6 the kernel drops packets below 40 bytes and counts them nowhere:
        it requires the UDP datagram to be as long as its own and IPv6's header
        (net/ipv6/xfrm6_input.c).
        """
        if (self.mode, self.encapsulation, self.version) != (Mode.TRANSPORT, Encapsulation.UDP, 6):
            return 0
        # Less SPI, sequence number, IV and ICV; payload and trailer are padded to whole words.
        return 40 - 16 - self.suite.icv_len - 5

    def spi(self, sender: int) -> int:
        return 0x1000 * (sender + 1) + self.number

    @property
    def name(self) -> str:
        return f"link-{self.number}"

    def configuration(self) -> dict[str, Any]:
        """The entry of `tunnels` in esp_gw's configuration."""
        entry: dict[str, Any] = {
            "mode": str(self.mode),
            "encapsulation": str(self.encapsulation),
            "local": self.outer[0],
            "remote": self.outer[1],
            "suite": self.suite.name,
            "esn": self.esn,
            "replay_window": self.replay_window,
            "outbound": {"spi": self.spi(0), "key": {"inline": self.keys[0]}},
            "inbound": {"spi": self.spi(1), "key": {"inline": self.keys[1]}},
        }
        if self.mode is Mode.TUNNEL:
            entry["local_ts"] = [self.net(0, version) for version in self.inner_versions]
            entry["remote_ts"] = [self.net(1, version) for version in self.inner_versions]
        return entry

    def state(self, sender: int, *more: str) -> list[str]:
        """The arguments of `ip xfrm state add` for the SA of a sender."""
        # Without it the SA accepts only inner packets of its outer IP version.
        either_version = ["af-unspec"] if self.mode is Mode.TUNNEL else []
        flags = [*(["esn"] if self.esn else []), *either_version]
        encap = ["encap", "espinudp", "4500", "4500", "0.0.0.0"]
        return [
            *("src", self.outer[sender], "dst", self.outer[1 - sender]),
            *("proto", "esp", "spi", str(self.spi(sender)), "reqid", str(self.number)),
            *("mode", str(self.mode)),
            *("replay-window", str(self.kernel_window)),
            *(["flag", *flags] if flags else []),
            *(
                "aead",
                _AEAD[self.suite.cipher],
                "0x" + self.keys[sender],
                str(8 * self.suite.icv_len),
            ),
            *(encap if self.encapsulation is Encapsulation.UDP else []),
            *more,
        ]

    def policies(self) -> Iterator[list[str]]:
        """The arguments of `ip xfrm policy add` in the kernel's namespace."""
        for version in self.inner_versions:
            for direction, sender in (("out", 1), ("in", 0)):
                yield [
                    *("src", self.net(sender, version), "dst", self.net(1 - sender, version)),
                    *("dir", direction, "priority", "100", "tmpl"),
                    *("src", self.outer[sender], "dst", self.outer[1 - sender]),
                    *("proto", "esp", "reqid", str(self.number), "mode", str(self.mode)),
                ]


def with_keys(link: Link) -> Link:
    """Return the link with fresh keys: key and salt as hex."""
    keys = [secrets.token_hex(link.suite.keymat_len) for _ in range(2)]
    values = {name: getattr(link, name) for name in link.__dataclass_fields__}
    return Link(**{**values, "keys": tuple(keys)})


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Enter a network namespace: sockets made in the block stay in it."""
    netns.pushns(namespace.name)
    try:
        yield
    finally:
        netns.popns()


def build(a: Namespace, b: Namespace, links: list[Link], folder: Path) -> list[socket.socket]:
    """Join the namespaces and configure the kernel; the caller keeps the sockets open."""
    wire(a, b)
    for side, namespace in enumerate((a, b)):
        outer = {(link.outer[side], link.version) for link in links}
        outer |= {(addresses[side], version) for version, addresses in _OUTER.items()}
        batch = [_add_address(address, version, "wan") for address, version in sorted(outer)]
        if side == 1:
            batch += [
                ["xfrm", "policy", "add", selector, "dir", way, "priority", "1"]
                for selector, way in _BYPASSED
            ]
            batch += [command for link in links for command in _kernels_half(link)]
        # A single process for all commands: starting processes is slow in an emulator.
        file = folder / f"ip-{side}"
        file.write_text("\n".join(" ".join(command) for command in batch))
        namespace.ip("-batch", str(file))
    return [_encap_socket(b, family) for family in (socket.AF_INET, socket.AF_INET6)]


def _kernels_half(link: Link) -> Iterator[list[str]]:
    for sender in (0, 1):
        yield ["xfrm", "state", "add", *link.state(sender)]
    for policy in link.policies():
        yield ["xfrm", "policy", "add", *policy]
    if link.mode is Mode.TUNNEL:
        for version in link.inner_versions:
            yield _add_address(link.inner(1, version), version, "lo")
            # The policy decides the destination; the route only makes the kernel consult it.
            via = ["via", _OUTER[version][0], "dev", "wan"]
            yield ["route", "add", link.net(0, version), *via]


def _add_address(address: str, version: int, device: str) -> list[str]:
    length = {4: 24, 6: 64}[version] if device == "wan" else {4: 32, 6: 128}[version]
    nodad = ["nodad"] if version == 6 else []
    return ["address", "add", f"{address}/{length}", "dev", device, *nodad]


def _encap_socket(namespace: Namespace, family: socket.AddressFamily) -> socket.socket:
    """Return a socket on which the kernel decapsulates ESP in UDP (udp(7), UDP_ENCAP)."""
    with inside(namespace):
        sock = socket.socket(family, socket.SOCK_DGRAM)
    if family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.IPPROTO_UDP, _UDP_ENCAP, _UDP_ENCAP_ESPINUDP)
    sock.bind(("", 4500))
    return sock


def write_configuration(
    path: Path, links: list[Link], settings: dict[str, object], **sections: object
) -> None:
    """Write esp_gw's configuration: `settings` for the section `gateway`, and other `sections`."""
    tunnels = [link for link in links if link.mode is Mode.TUNNEL]
    addresses = [link.inner(0, version) for link in tunnels for version in (4, 6)]
    document = {
        "gateway": {"address": addresses, "allow_inline_keys": True, **settings},
        "tunnels": {link.name: link.configuration() for link in links},
        **sections,
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))


def sizes(link: Link, wanted: list[int]) -> list[int]:
    """Payload sizes behind the 8-byte UDP or ICMP header, without those that the kernel drops."""
    return [size for size in wanted if 8 + size >= link.least_payload]


class Peers:
    """A running gateway and the kernel beside it."""

    def __init__(self, gateway: LabGateway, kernel: Namespace) -> None:
        self.gateway = gateway
        self.kernel = kernel
        self._sides = (gateway.namespace, kernel)

    def socket(
        self, side: int, address: str, kind: socket.SocketKind, protocol: int = 0
    ) -> socket.socket:
        """Return a socket of a side, bound to one of its addresses."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(self._sides[side]):
            sock = socket.socket(family, kind, protocol)
        sock.settimeout(TIMEOUT)
        sock.bind((address, 0))
        return sock

    def receive(self, sock: socket.socket, what: str) -> bytes:
        """Return the next datagram; on a timeout fail with the counters of both sides."""
        try:
            return sock.recv(65535)
        except TimeoutError:
            pytest.fail(f"{what}: did not arrive; {self.refused()}")

    def refused(self) -> dict[str, int]:
        """Packets dropped by esp_gw or refused by the kernel's ESP, by counter."""
        lines = self.kernel.run("cat", "/proc/net/xfrm_stat").stdout.splitlines()
        counters = {name: int(value) for name, value in map(str.split, lines)}
        counters |= self.gateway.call("GetStats")["drops"]
        return {name: value for name, value in counters.items() if value}


@contextmanager
def kernel_peers(
    folder: Path, links: list[Link], prepare: Callable[[LabGateway], None]
) -> Iterator[Peers]:
    """Start a gateway beside the kernel's ESP, with `links` between the two.

    `prepare` writes the gateway's configuration before the start. `folder` holds its files.
    """
    with ExitStack() as stack:
        a, b = stack.enter_context(namespaces("a", "b"))
        for sock in build(a, b, links, folder):
            stack.callback(sock.close)
        gateway = LabGateway(a, folder / "gateway.yaml", folder)
        prepare(gateway)
        gateway.create_ledger()
        gateway.start()
        stack.callback(gateway.stop)
        yield Peers(gateway, b)
