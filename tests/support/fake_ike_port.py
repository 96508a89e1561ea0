"""The port that IKE shares with ESP, as a gateway has it, in a namespace; it carries no ESP."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from ipaddress import IPv6Address

from esp_gw.demo.netns import Namespace
from esp_gw.engine.base import RELAY_HEADER
from tests.support.kernel_peer import inside
from tests.support.owner_client import mapped

PORT = 4500
MARKER = bytes(4)
_PKTINFO = struct.Struct("=I4s4s")
_IP_PKTINFO = 8
"""Of linux/in.h."""


class FakeIkePort:
    """A UDP socket of IPv4 and a pair of datagram sockets; `theirs` is the IKE daemon's end."""

    def __init__(self, namespace: Namespace) -> None:
        with inside(namespace):
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._udp.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._udp.bind(("0.0.0.0", PORT))
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def send_raw(self, datagram: bytes) -> None:
        """Send the IKE daemon a datagram as it is."""
        self._ours.send(datagram)

    def _relay(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._udp, self._ours, self._ended):
                selector.register(each, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._ended in ready:
                    return
                try:
                    if self._udp in ready:
                        self._receive()
                    if self._ours in ready:
                        self._send()
                except OSError:
                    # Lost, as on any way to the peer; after the daemon's end for good.
                    if self._ours in ready:
                        selector.unregister(self._ours)

    def _receive(self) -> None:
        data, ancillary, _, (source, port) = self._udp.recvmsg(1 << 16, 256)
        ((_, _, info),) = ancillary
        destination = socket.inet_ntoa(_PKTINFO.unpack(info)[2])
        if data.startswith(MARKER):
            header = RELAY_HEADER.pack(mapped(source), mapped(destination), port, PORT)
            self._ours.send(header + data[len(MARKER) :])

    def _send(self) -> None:
        data = self._ours.recv(1 << 16)
        source, destination, _, port = RELAY_HEADER.unpack(data[: RELAY_HEADER.size])
        here, there = (IPv6Address(end).ipv4_mapped for end in (source, destination))
        assert here is not None and there is not None
        info = _PKTINFO.pack(0, here.packed, bytes(4))
        ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
        message = MARKER + data[RELAY_HEADER.size :]
        self._udp.sendmsg([message], ancillary, 0, (str(there), port))

    def close(self) -> None:
        self._end.close()
        self._thread.join()
        for each in (self._udp, self._ours, self.theirs, self._ended):
            each.close()
