"""qemu's monitor: the hands that change a machine's hardware while it runs.

Source: QEMU Machine Protocol Specification (qemu, docs/interop/qmp-spec.txt).
"""

from __future__ import annotations

import json
import socket
from typing import Any

from esp_gw.errors import LabError

_TIMEOUT = 60.0


class Monitor:
    """A connection to the monitor of one qemu process."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(_TIMEOUT)
        self._socket = connected
        self._lines = connected.makefile("r")
        self._greeted = False

    def set_link(self, name: str, *, up: bool) -> None:
        """Plug the cable of a network card in or out. Raises LabError."""
        self._execute("set_link", name=name, up=up)

    def close(self) -> None:
        """Close the connection; the machine goes on."""
        self._lines.close()
        self._socket.close()

    def _execute(self, command: str, **arguments: object) -> None:
        if not self._greeted:
            self._receive("QMP")
            self._greeted = True
            self._execute("qmp_capabilities")
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        self._receive("return")

    def _receive(self, wanted: str) -> None:
        """Read up to the message `wanted`, over events. Raises LabError for a refusal."""
        try:
            for line in self._lines:
                message: dict[str, Any] = json.loads(line)
                if wanted in message:
                    return
                if "error" in message:
                    raise LabError(message["error"]["desc"], where="qemu")
        except OSError as error:
            raise LabError(f"the monitor does not answer: {error}", where="qemu") from None
        raise LabError("the monitor ended", where="qemu")
