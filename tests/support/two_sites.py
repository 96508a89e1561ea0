"""Two sites on a shared network, with a host behind the first one.

    host 10.1.0.5 --- lan 10.1.0.1 [a] wan 192.0.2.1 ---+
                                                        br0 192.0.2.9, 10.2.0.77, 198.51.100.1 [net]
                      lo 10.2.0.1  [b] wan 192.0.2.2 ---+

The IPv6 addresses are fd00:N:: and 2001:db8:: with the same last parts. `net` is the next hop of
both gateways, forwards, and has an address of the far site's prefix: cleartext to it would be
answered. No host filters by reverse path.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, namespaces
from tests.support.labtools import Capture, forwarding, frames, mac, ping, send_frames, write_key

PORT = 9999
_BOUND = """
import socket, sys
device, source, target, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in target else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
if source: s.bind((source, 0))
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
for _ in range(3):
    try: s.sendto(b"cleartext", (target, int(port)))
    except OSError: pass
"""


_LINK_LOCAL = """
import socket, sys
(source,) = [
    line.split()[0]
    for line in open("/proc/net/if_inet6")
    if line.startswith("fe80") and line.split()[-1] == "wan"
]
source = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(source))
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind((source, 0, 0, socket.if_nametoindex("wan")))
for _ in range(3):
    try: s.sendto(b"cleartext", (sys.argv[1], int(sys.argv[2])))
    except OSError: pass
"""


@dataclass(frozen=True)
class Places:
    """Addresses of one IP version."""

    version: int
    host: str
    lan: str
    a: str
    b: str
    net: str
    far: str
    """Behind b, carried by the tunnel."""
    imposter: str
    """In the far site's prefix, and on `net`."""
    stranger: str
    """Behind `net`, in no site's prefix."""
    local_ts: str
    remote_ts: str
    wide: str
    """A prefix around both sites."""
    default: str


PLACES = {
    4: Places(
        *(4, "10.1.0.5", "10.1.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.9"),
        *("10.2.0.1", "10.2.0.77", "198.51.100.1", "10.1.0.0/24", "10.2.0.0/24", "10.0.0.0/8"),
        "0.0.0.0/0",
    ),
    6: Places(
        *(6, "fd00:1::5", "fd00:1::1", "2001:db8::1", "2001:db8::2", "2001:db8::9"),
        *("fd00:2::1", "fd00:2::77", "2001:db8:9::1", "fd00:1::/64", "fd00:2::/64", "fd00::/16"),
        "::/0",
    ),
}
_LENGTH = {4: (24, 32), 6: (64, 128)}


def new_gateway(folder: Path, namespace: Namespace) -> LabGateway:
    """Make a gateway with an empty ledger, and without a configuration, in a new folder."""
    folder.mkdir(mode=0o700)
    gateway = LabGateway(namespace, folder / "gateway.yaml", folder)
    gateway.create_ledger()
    return gateway


class TwoSites:
    """The namespaces and gateways, configured by `configure`, not started."""

    def __init__(self, folder: Path, engine: str, hosts: list[Namespace]) -> None:
        self.host, self.ns_a, self.net, self.ns_b = hosts
        self._folder = folder
        self._engine = engine
        self._captures = 0
        self.a, self.b = (
            new_gateway(folder / name, hosts[at]) for name, at in (("a", 1), ("b", 3))
        )

    def configure(
        self, mode: str, local_ts: str, remote_ts: str, places: Places, **more: Any
    ) -> None:
        """Write matching configurations of one tunnel; `more` are settings of the gateway a."""
        keys = [str(write_key(self._folder / name)) for name in ("one.key", "two.key")]
        sides = (
            (self.a, places.a, places.b, local_ts, remote_ts, 0, places.lan),
            (self.b, places.b, places.a, remote_ts, local_ts, 1, places.far),
        )
        for gateway, local, remote, ours, theirs, side, address in sides:
            settings = {**gateway.settings, "engine": self._engine, "address": address}
            fields = {
                "mode": mode,
                "local": local,
                "remote": remote,
                "outbound": {"spi": 0x1001 + side, "key": {"file": keys[side]}},
                "inbound": {"spi": 0x1002 - side, "key": {"file": keys[1 - side]}},
            }
            if mode == "tunnel":
                fields |= {"local_ts": ours, "remote_ts": theirs}
            document = {
                "gateway": settings | (more if gateway is self.a else {}),
                "tunnels": {"t": fields},
            }
            gateway.config.write_text(yaml.safe_dump(document))

    def start(self) -> None:
        for gateway in (self.a, self.b):
            gateway.launch()
        for gateway in (self.a, self.b):
            gateway.wait_ready()

    def seen(self, where: Namespace, device: str, act: Callable[[], object]) -> list[Packet]:
        """Return the frames on a device while `act` runs."""
        self._captures += 1
        capture = Capture(where, self._folder / f"{self._captures}.pcap", device)
        act()
        cooked = IP if device == "esp0" else Ether
        return [_dissected(frame, cooked) for frame in frames(capture.stop())]

    def send_bound(self, target: str, source: str = "", port: int = PORT) -> None:
        """Send three datagrams from a by a socket bound to its outer device, without privilege."""
        self.ns_a.run(
            *("setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-I", "-S"),
            *("-c", _BOUND, "wan", source, target, str(port)),
        )

    def send_from_link_local(self, target: str) -> None:
        """Send three datagrams from a with the link-local source of its outer device."""
        self.ns_a.run(
            *("setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-I", "-S"),
            *("-c", _LINK_LOCAL, target, str(PORT)),
        )

    def forge(self, source: str, target: str, payload: Packet | None = None) -> None:
        """Send three packets with a forged source to a from the shared network."""
        if ":" in source:
            packet = IPv6(src=source, dst=target) / (payload or ICMPv6EchoRequest(data=b"forged"))
        else:
            packet = IP(src=source, dst=target) / (payload or ICMP() / Raw(b"forged"))
        frame = Ether(src=mac(self.net, "br0"), dst=mac(self.ns_a)) / packet
        send_frames(self.net, [bytes(frame)] * 3, "br0")
        # The frames before it have arrived when this one is answered.
        place = PLACES[6 if ":" in source else 4]
        assert ping(self.net, place.a, count=1) == 1


def _dissected(frame: bytes, first: type[Packet]) -> Packet:
    if first is IP and frame[0] >> 4 == 6:
        return IPv6(frame)
    return first(frame)


def datagram(port: int) -> Packet:
    """Return a UDP datagram from and to a port."""
    return UDP(sport=port, dport=port) / Raw(b"forged")


@contextlib.contextmanager
def two_sites(folder: Path, engine: str) -> Iterator[TwoSites]:
    """Create the namespaces; at the end the gateways are stopped and all are removed."""
    with namespaces("host", "a", "net", "b") as hosts:
        host, a, net, b = hosts
        net.ip("link", "add", "br0", "type", "bridge")
        net.ip("link", "set", "br0", "up")
        for number, gateway in enumerate((a, b)):
            gateway.ip(
                *("link", "add", "wan", "type", "veth"),
                *("peer", "name", f"port{number}", "netns", net.name),
            )
            net.ip("link", "set", f"port{number}", "master", "br0", "up")
            gateway.ip("link", "set", "wan", "up")
        a.ip("link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", host.name)
        a.ip("link", "set", "lan", "up")
        host.ip("link", "set", "eth0", "up")
        for places in PLACES.values():
            length, whole = _LENGTH[places.version]
            for namespace, address, device in (
                (a, places.a, "wan"),
                (a, places.lan, "lan"),
                (b, places.b, "wan"),
                (b, places.far, "lo"),
                (net, places.net, "br0"),
                (net, places.imposter, "br0"),
                (host, places.host, "eth0"),
            ):
                add_address(namespace, f"{address}/{length}", device)
            add_address(net, f"{places.stranger}/{whole}", "lo")
            family = f"-{places.version}"
            for namespace, hop in ((a, places.net), (b, places.net), (host, places.lan)):
                namespace.ip(family, "route", "add", "default", "via", hop)
            net.ip(family, "route", "add", places.local_ts, "via", places.a)
        forwarding(a, b, net)
        for namespace in (a, b, net):
            for device in ("all", "wan", "lan", "br0"):
                path = f"/proc/sys/net/ipv4/conf/{device}/rp_filter"
                namespace.run("sh", "-c", f"[ ! -e {path} ] || echo 0 > {path}")
        sites = TwoSites(folder, engine, hosts)
        try:
            yield sites
        finally:
            for gateway in (sites.a, sites.b):
                if gateway.is_running:
                    gateway.stop()
