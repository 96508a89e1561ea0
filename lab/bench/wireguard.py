"""Userspace WireGuard as a system to measure: wireguard-go, gotatun."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esp_gw.demo.netns import Namespace, add_address
from esp_gw.files import write_new
from lab.bench.hosts import OUTER, Daemons, running, succeeds, two_hosts, wait_for_traffic
from lab.bench.model import Link

_MTU = "1420"
_FIRST_PORT = 51820


def inner(tunnel: int) -> tuple[str, str]:
    """The inner addresses of a tunnel's two ends."""
    return f"10.9.{tunnel}.1", f"10.9.{tunnel}.2"


@dataclass(frozen=True, slots=True)
class Wireguard:
    """A program that makes an interface, with fresh keys for each start.

    `command` takes the interface's name as its last argument and stays in the foreground. Between
    two hosts a tunnel is an interface at each end, with a daemon and a port of its own.
    """

    command: tuple[str, ...]
    tunnels: int = 1

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[Link]:
        """Set up both ends of all tunnels and yield their link. Raises LabError."""
        with two_hosts() as hosts, running(folder) as daemons:
            pids = [
                daemons.start(host, *self.command, f"wg{tunnel}")
                for host in hosts
                for tunnel in range(self.tunnels)
            ]
            for tunnel in range(self.tunnels):
                ends = (pids[tunnel], pids[self.tunnels + tunnel])
                self._configure(folder, daemons, hosts, ends, tunnel)
            first, *further = (inner(tunnel) for tunnel in range(self.tunnels))
            link = Link(*hosts, *first, tuple(pids), tuple(further))
            wait_for_traffic(link)
            yield link

    def _configure(
        self,
        folder: Path,
        daemons: Daemons,
        hosts: tuple[Namespace, Namespace],
        pids: tuple[int, int],
        tunnel: int,
    ) -> None:
        keys = [_key_pair() for _ in OUTER]
        interface, addresses, port = f"wg{tunnel}", inner(tunnel), _FIRST_PORT + tunnel
        for side, (host, pid) in enumerate(zip(hosts, pids, strict=True)):
            config = folder / f"{interface}.{side}.conf"
            text = (
                f"[Interface]\nPrivateKey = {keys[side][0]}\nListenPort = {port}\n"
                f"[Peer]\nPublicKey = {keys[1 - side][1]}\n"
                f"AllowedIPs = {addresses[1 - side]}/32\nEndpoint = {OUTER[1 - side]}:{port}\n"
            )
            write_new(config, text.encode())
            # The control socket is in the daemon's private /run.
            enter = ("nsenter", "-t", str(pid), "-m", "-n", "wg", "setconf", interface, str(config))
            daemons.wait_until(
                lambda enter=enter: succeeds(enter),  # type: ignore[misc]
                f"{Path(self.command[0]).name} did not take its configuration",
            )
            add_address(host, f"{addresses[side]}/24", interface)
            host.ip("link", "set", interface, "mtu", _MTU, "up")


def _key_pair() -> tuple[str, str]:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    key = X25519PrivateKey.generate()
    return (
        base64.b64encode(key.private_bytes_raw()).decode(),
        base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    )
