"""A way to the control socket on which another SPI is reserved than the gateway's choice."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path

_RESERVED = re.compile(rb'\A\{"parameters": ?\{"spi": ?\d+\}\}\n\Z')
_LIMIT = 1 << 20


class ControlProxy:
    """Passes each connection on; the answer of ReserveSpi has `spi` while that is not None."""

    def __init__(self, path: Path, control_socket: Path) -> None:
        self.path = path
        self.spi: int | None = None
        self._control_socket = control_socket
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                gateway = socket.socket(socket.AF_UNIX)
                gateway.connect(str(self._control_socket))
                for ends in ((client, gateway), (gateway, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, files, _, _ = socket.recv_fds(source, _LIMIT, 4)
                if not data:
                    break
                spi = self.spi
                if spi is not None and _RESERVED.match(data):
                    data = b'{"parameters": {"spi": %d}}\n' % spi
                sent = socket.send_fds(target, [data], files)
                target.sendall(data[sent:])
                for number in files:
                    socket.close(number)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
