"""Helpers of lab tests: captures, injected frames, configuration changes, further hosts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import RawPcapReader

from esp_gw.config.load import load_config
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import NETNS_DIR, Namespace, add_address, end
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.tap import Tap
from esp_gw.demo.traffic import iperf_server
from esp_gw.model import CHACHA20_POLY1305, Sa
from esp_gw.network.link import TUN_OVERFLOW
from esp_gw.network.plan_file import PlanFile
from lab.waiting import holds_within

MakePair = Callable[..., GatewayPair]
StartTap = Callable[..., Tap]
StartCapture = Callable[..., "Capture"]


class Capture:
    """A running tcpdump on a device; `stop` returns the complete file."""

    def __init__(self, namespace: Namespace, path: Path, device: str = "wan") -> None:
        self.path = path
        _disable_offloads(device)
        self._process = namespace.start(
            *("tcpdump", "-i", device, "-n", "-s", "0", "-B", "65536"),
            *("--immediate-mode", "-U", "-w", str(path), "-Z", "root"),
            stderr=subprocess.PIPE,
        )
        if not any("listening on" in line for line in self._process.stderr or ()):
            raise AssertionError("tcpdump did not start")

    def stop(self) -> Path:
        end(self._process)
        return self.path


def _disable_offloads(device: str) -> None:
    """Disable checksum and segmentation offload on both ends of a device.

    A veth passes super-packets whole and leaves partial checksums uncomputed, unlike a wire.
    """
    for entry in NETNS_DIR.iterdir():
        if entry.name.endswith(f"-{os.getpid()}"):
            command = ("ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off")
            Namespace(entry.name).run(*command, check=False)


@dataclass(frozen=True)
class EspPacket:
    spi: int
    seq_lo: int
    iv: bytes
    frame: bytes


def frames(path: Path) -> Iterator[bytes]:
    """Yield the frames of a capture; an incomplete last one is left out."""
    with RawPcapReader(str(path)) as reader:
        for frame, metadata in reader:
            if len(frame) == metadata.caplen:
                yield frame


def esp_packets(path: Path) -> Iterator[EspPacket]:
    """Yield the IPv4 ESP packets of a capture of Ethernet frames, in UDP or not."""
    # Parsed by hand: dissection by scapy is too slow for captures of whole throughput tests.
    for frame in frames(path):
        if frame[12:14] != b"\x08\x00" or frame[23] not in (17, 50):
            continue
        esp = 14 + (frame[14] & 15) * 4 + (8 if frame[23] == 17 else 0)
        if len(frame) < esp + 16:
            continue
        spi, seq_lo = struct.unpack_from("!II", frame, esp)
        yield EspPacket(spi, seq_lo, frame[esp + 8 : esp + 16], frame)


TCP_VOLUME = 16 << 20
"""Bytes of a TCP transfer: windows open, and super-packets reach their full size."""


def carry_tcp(client: Namespace, server: Namespace, target: str, *options: str) -> None:
    """Send TCP_VOLUME by TCP to `target`, an address of `server`."""
    with iperf_server(server, target):
        send_tcp(client, target, *options)


def send_tcp(client: Namespace, target: str, *options: str) -> None:
    """Send TCP_VOLUME to the iperf3 server at `target`."""
    command = ("iperf3", "-J", "-c", target, "-n", str(TCP_VOLUME), "--connect-timeout", "3000")
    report = json.loads(client.run(*command, *options, timeout=60, check=False).stdout)
    assert "error" not in report, report["error"]
    assert report["end"]["sum_received"]["bytes"] > 0


def carry_tcp_both_ways(client: Namespace, server: Namespace, target: str, *options: str) -> None:
    """Send TCP_VOLUME by TCP to `target`, an address of `server`, and as much back."""
    for direction in ((), ("-R",)):
        carry_tcp(client, server, target, *options, *direction)


def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait for a condition; fail with `what` if it doesn't hold in time."""
    assert holds_within(seconds, condition), f"never happened: {what}"


def send_frames(namespace: Namespace, frames: list[bytes], device: str = "wan") -> None:
    """Send Ethernet frames on a device, unchanged."""
    script = (
        "import socket, sys, struct\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0))\n"
        "data = sys.stdin.buffer.read(); at = 0\n"
        "while at < len(data):\n"
        "    n, = struct.unpack_from('!I', data, at); s.send(data[at+4:at+4+n]); at += 4 + n\n"
    )
    blob = b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)
    subprocess.run(
        namespace.command(sys.executable, "-c", script, device),
        input=blob,
        check=True,
        timeout=30,
    )


def drops(gateway: LabGateway) -> Counter[str]:
    """Return the drops by reason, without those in front of the TUN: the machine's load decides."""
    found = gateway.call("GetStats")["drops"]
    return Counter({reason: count for reason, count in found.items() if reason != TUN_OVERFLOW})


def log_without_states(gateway: LabGateway) -> list[str]:
    """Return the lines of a gateway's log, without those on the states of tunnels."""
    lines = gateway.log.read_text().splitlines()
    return [line for line in lines if " a tunnel is " not in line]


def sas(gateway: LabGateway) -> dict[str, dict[str, Any]]:
    """Return the SAs of a running gateway by name."""
    return {sa["name"]: sa for sa in gateway.call("ListSas")["sas"]}


def packets_by_lane(gateway: LabGateway, direction: str) -> Counter[str]:
    """Packets carried by the SAs of a direction, by the suffix of their names, "" for lane 0."""
    start = f"/{direction}"
    return Counter(
        {
            name.partition(start)[2]: sa["packets"]
            for name, sa in sas(gateway).items()
            if start in name
        }
    )


def configured_sa(gateway: LabGateway, name: str) -> Sa:
    """Return an SA of the configuration, with its key."""
    (sa,) = [sa for sa in load_config(gateway.config).sas if sa.name == name]
    return sa


def forge(sa: Sa, seq: int, inner: Packet) -> bytes:
    """Return an ESP packet made by scapy with an SA's key, SPI to ICV (tunnel mode, ESN)."""
    crypt = "CHACHA20-POLY1305" if sa.suite.cipher == CHACHA20_POLY1305 else "AES-GCM"
    sealer = SecurityAssociation(
        ESP,
        spi=sa.spi,
        crypt_algo=crypt,
        crypt_key=sa.keymat.to_bytes(),
        crypt_icv_size=sa.suite.icv_len,
        tunnel_header=IP(src=str(sa.local), dst=str(sa.remote)),
        esn_en=True,
        esn=seq >> 32,
    )
    sealed = sealer.encrypt(inner, seq_num=seq & 0xFFFFFFFF, iv=seq.to_bytes(8, "big"))
    return bytes(sealed[ESP])


def udp_frame(
    sender: Namespace,
    receiver: Namespace,
    payload: bytes,
    src: str = "192.0.2.1",
    dst: str = "192.0.2.2",
    sport: int = 4500,
) -> bytes:
    """Return a datagram to the ESP port as an Ethernet frame between two namespaces."""
    ether = Ether(src=mac(sender), dst=mac(receiver))
    datagram = UDP(sport=sport, dport=4500, chksum=0) / Raw(payload)
    return bytes(ether / IP(src=src, dst=dst) / datagram)


def mac(namespace: Namespace, device: str = "wan") -> str:
    (link,) = json.loads(namespace.ip("-j", "link", "show", device))
    return str(link["address"])


def links(namespace: Namespace) -> set[str]:
    """Return the names of a namespace's devices."""
    return {link["ifname"] for link in json.loads(namespace.ip("-j", "link"))}


def edit(gateway: LabGateway, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a gateway's configuration file, without a reload."""
    document = yaml.safe_load(gateway.config.read_text())
    change(document)
    gateway.config.write_text(yaml.safe_dump(document, sort_keys=False))


def write(namespace: Namespace, values: Mapping[str, object]) -> None:
    """Set kernel settings of a namespace by their path below /proc/sys/net."""
    for name, value in values.items():
        namespace.run("sh", "-c", f"echo {value} > /proc/sys/net/{name}")


def forwarding(*hosts: Namespace) -> None:
    """Enable forwarding of IPv4 and IPv6 in namespaces."""
    for host in hosts:
        write(host, {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})


def network(host: Namespace) -> dict[str, list[str]]:
    """Return rules, routes, links, addresses and packet filter of a namespace, for comparison."""
    commands = {
        "rules": ("rule",),
        "rules6": ("-6", "rule"),
        "routes": ("route", "show", "table", "all"),
        "routes6": ("-6", "route", "show", "table", "all"),
        "links": ("-o", "-br", "link"),
        "addresses": ("-o", "-br", "address"),
    }
    found = {name: _stable(host.ip(*command)) for name, command in commands.items()}
    # In order, and without counts.
    found["filter"] = host.run("nft", "-s", "list", "ruleset").stdout.splitlines()
    return found


def _stable(text: str) -> list[str]:
    # Peer indices differ between TUN devices; the kernel's link-local entries come and go.
    lines = [re.sub(r"@if\d+", "", line).rstrip() for line in text.splitlines()]
    return sorted(line for line in lines if "fe80" not in line and "ff00" not in line)


@contextlib.contextmanager
def running(namespace: Namespace, script: str, *arguments: str) -> Iterator[None]:
    """Run a Python script that prints `ready`, during the block."""
    process = namespace.start(
        sys.executable, "-c", script, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert next(iter(process.stdout or ()), "") == "ready\n"
        yield
    finally:
        end(process)


def keep_multicast_off(host: Namespace, device: str) -> None:
    """Drop what the host itself sends to multicast groups, before it reaches a device.

    A router's kernel reports its own membership of ff02::2 on each interface, at random times
    (RFC 4861 6.2.2, RFC 3810 6.1): an exact count of refused packets has to be without it.
    """
    rules = (
        "add table inet quiet; add chain inet quiet out { type filter hook output priority 0; }; "
        f'add rule inet quiet out oifname "{device}" ip6 daddr ff00::/8 drop; '
        f'add rule inet quiet out oifname "{device}" ip daddr 224.0.0.0/4 drop'
    )
    host.run("nft", rules)


def site_host(host: Namespace, router: Namespace, number: int) -> None:
    """Connect a host behind a gateway, its router; its addresses are 10.N.0.10 and fd00:N::10."""
    router.ip(*("link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", host.name))
    for namespace, device, last in ((router, "lan", "1"), (host, "eth0", "10")):
        namespace.ip("link", "set", device, "up")
        add_address(namespace, f"10.{number}.0.{last}/24", device)
        add_address(namespace, f"fd00:{number}::{last}/64", device)
    host.ip("route", "add", "default", "via", f"10.{number}.0.1")
    host.ip("-6", "route", "add", "default", "via", f"fd00:{number}::1")


def write_key(path: Path, length: int = 36) -> Path:
    """Write a fresh key file of `length` bytes, key and salt, as hex."""
    path.write_text(secrets.token_hex(length) + "\n")
    path.chmod(0o600)
    return path


def tunnel(config: dict[str, Any]) -> dict[str, Any]:
    """Return the only tunnel of a configuration."""
    fields: dict[str, Any]
    (fields,) = config["tunnels"].values()
    return fields


def start_pings(
    namespace: Namespace, target: str, count: int, size: int = 56, interval: float = 0.01
) -> subprocess.Popen[str]:
    """Start sending echo requests; `answers` returns the number of replies."""
    pinger = Path(__file__).with_name("pinger.py")
    numbers = (str(count), str(size), str(interval))
    program = (sys.executable, "-I", "-S", str(pinger), target, *numbers)
    return namespace.start(*program, stdout=subprocess.PIPE)


def answers(pings: subprocess.Popen[str]) -> int:
    """Wait for the end of `start_pings`; return the number of answered requests."""
    output, _ = pings.communicate(timeout=60)
    return int(output.split()[0])


def lost(pings: subprocess.Popen[str]) -> int:
    """End `start_pings` now; return the number of requests without an answer."""
    assert pings.poll() is None, "the pings ended before what they were to watch"
    pings.terminate()
    output, _ = pings.communicate(timeout=60)
    answered, sent = map(int, output.split())
    assert sent > 0
    return sent - answered


def ping(
    namespace: Namespace, target: str, *, count: int = 5, size: int = 56, interval: float = 0.01
) -> int:
    """Send echo requests; return the number of answered ones."""
    return answers(start_pings(namespace, target, count, size, interval))


def guard(gateway: LabGateway, *arguments: str, check: bool = True) -> str:
    """Run a command of `esp-gw guard` on a gateway's configuration; return what it prints."""
    done = gateway.cli("guard", *arguments, "--config", str(gateway.config), check=check)
    return done.stdout + done.stderr


def until_planned(gateway: LabGateway, *prefixes: str) -> None:
    """Wait until the guard's plan on disk has these prefixes of IKE, and no other."""

    def planned() -> list[str]:
        stored = PlanFile(gateway.folder).read()
        standing = () if stored is None else stored.standing
        return sorted(str(pair.remote) for each in standing for pair in each.selectors)

    until(lambda: planned() == sorted(prefixes), f"the plan has {prefixes}", 20)


def reboot(gateway: LabGateway) -> None:
    """Remove what a reboot removes of a stopped gateway: the kernel's network, and /run."""
    plan = {path: path.read_bytes() for path in gateway.folder.glob("guard*.json")}
    guard(gateway, "down")
    for path, content in plan.items():
        path.write_bytes(content)
    (gateway.folder / "guard.opened").unlink()
    shutil.rmtree(gateway.folder / "ike", ignore_errors=True)
