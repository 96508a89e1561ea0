"""An IKE daemon's side of the owner's session: a persistent connection, and children with keys."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esp_gw.control.protocol import PREFIX, decode_reply, encode_request


class Connection:
    """A connection that stays; messages are lines."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        # With a timeout, a full backlog is an error at once.
        self._socket.connect(str(path))
        self._socket.settimeout(timeout)
        self._buffer = b""

    def send(self, method: str, **parameters: object) -> None:
        self._socket.sendall(encode_request(method, parameters))

    def line(self) -> bytes:
        """Return the next line; empty at the end of the connection."""
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 20)
            if not data:
                return b""
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Return the answer's parameters. Raises ControlError for an error reply."""
        self.send(method, **parameters)
        return decode_reply(self.line())

    def close(self) -> None:
        self._socket.close()


class Session(Connection):
    """The session of `ike`; `found` is what OpenSession has answered."""

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        super().__init__(path)
        self.found = self.call("OpenSession", owner="ike", take_over=take_over)


class Watcher(Connection):
    """The events of `ike`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.send("Watch", owner="ike")

    def event(self, name: str) -> dict[str, Any]:
        """Return the next event of this name; others are skipped."""
        while True:
            message = json.loads(self.line())
            assert message["continues"] is True, message
            if message["parameters"]["event"] == name:
                found: dict[str, Any] = message["parameters"]
                return found


@contextlib.contextmanager
def closing(*connections: Connection) -> Iterator[None]:
    try:
        yield
    finally:
        for connection in connections:
            connection.close()


def error_of(line: bytes) -> str:
    """Return the name of the error in a reply."""
    return str(json.loads(line)["error"]).removeprefix(PREFIX)


class Child:
    """A child of two gateways: its SAs and policies as each side's session gives them.

    `outer` and `inner` have what is a's first and then what is b's.
    """

    def __init__(
        self,
        name: str,
        outer: tuple[str, str],
        inner: tuple[str, str],
        spis: tuple[int, int],
        **fields: object,
    ) -> None:
        self.name = name
        self.outer, self.inner = outer, inner
        self.spis = spis
        """The SPIs of a's and of b's inbound SA."""
        self.keys = [secrets.token_hex(36) for _ in spis]
        self.fields = fields

    def selectors(self, side: int) -> list[dict[str, object]]:
        return [{"local": self.inner[side], "remote": self.inner[1 - side]}]

    def sas(self, side: int, **fields: object) -> list[dict[str, object]]:
        """Return the inbound and the outbound SA of a side."""
        common = {
            "suite": "aes256gcm16",
            "mode": "tunnel",
            "encapsulation": "udp",
            "local": self.outer[side],
            "remote": self.outer[1 - side],
            "selectors": self.selectors(side),
            "esn": True,
            "replay_window": 32,
            "child": self.name,
            **self.fields,
            **fields,
        }
        return [
            {**common, "direction": way, "spi": self.spis[owner], "key": self.keys[owner]}
            for way, owner in (("inbound", side), ("outbound", 1 - side))
        ]

    def policy(self, side: int, name: str = "office", **fields: object) -> dict[str, object]:
        """Return the policy that protects by the child's outbound SA."""
        return {
            "id": name,
            "action": "protect",
            "selectors": self.selectors(side),
            "priority": 1000,
            "sa": self.spis[1 - side],
            "child": self.name,
            **fields,
        }

    def refs(self, side: int) -> list[dict[str, object]]:
        """Return the names of a side's SAs."""
        return [
            {"direction": "inbound", "spi": self.spis[side]},
            {"direction": "outbound", "spi": self.spis[1 - side]},
        ]

    def install(self, sessions: tuple[Session, Session], **fields: object) -> None:
        """Install it at both sides, with its policy."""
        for side, session in enumerate(sessions):
            session.call("InstallChild", sas=self.sas(side, **fields), policies=[self.policy(side)])
