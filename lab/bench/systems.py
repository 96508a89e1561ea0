"""Peers without WireGuard and IKE: each set up by its manual in two namespaces, and torn down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lab.bench.certificates import make_certificate
from lab.bench.hosts import OUTER, running, two_hosts, wait_for_traffic
from lab.bench.model import Link
from lab.bench.ping import answers


@contextlib.contextmanager
def veth(folder: Path) -> Iterator[Link]:
    """The plain wire, without a tunnel."""
    with two_hosts() as (a, b):
        link = Link(a, b, *OUTER)
        # The neighbours know each other then.
        wait_for_traffic(link)
        yield link


@contextlib.contextmanager
def openvpn(folder: Path) -> Iterator[Link]:
    """OpenVPN, point to point: TLS, AES-256-GCM, without the kernel's data channel offload."""
    inner = ("10.9.0.1", "10.9.0.2")
    prints = [make_certificate(folder, side) for side in ("a", "b")]
    role = (("--tls-server", "--dh", "none"), ("--tls-client",))
    with two_hosts() as hosts, running(folder) as daemons:
        pids = [
            daemons.start(
                host,
                *("openvpn", "--dev", "tun0", "--dev-type", "tun", "--proto", "udp4"),
                *("--port", "1194", "--remote", OUTER[1 - side], "--disable-dco"),
                *("--ifconfig", inner[side], inner[1 - side], "--tun-mtu", "1420"),
                *("--mssfix", "0", "--fast-io", "--txqueuelen", "1000"),
                *("--sndbuf", "4194304", "--rcvbuf", "4194304"),
                *("--cipher", "AES-256-GCM", "--data-ciphers", "AES-256-GCM"),
                *role[side],
                *("--cert", str(folder / f"{name}.crt"), "--key", str(folder / f"{name}.key")),
                *("--peer-fingerprint", prints[1 - side], "--verb", "1"),
            )
            for side, (host, name) in enumerate(zip(hosts, "ab", strict=True))
        ]
        link = Link(*hosts, *inner, tuple(pids))
        daemons.wait_until(lambda: answers(link), "no ping came through the tunnel")
        yield link
