"""Netlink messages over a plain socket: dumps, and batches of requests that are answered by an ACK.

This is a second netlink stack beside pyroute2 (kernel.py, link.py). It stays because pyroute2 takes
a tenth to a third of a millisecond for each message: a gateway of 5,000 tunnels has 10,000 routes,
a host may have thousands of addresses, and all are read whenever another program changes one. Nor
does pyroute2 tell of a dump during which the kernel's state changed.

Sources: netlink(7), linux/netlink.h, Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence

from esp_gw.errors import NetworkError

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
NUMBER = struct.Struct("=I")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_TYPE_MASK = 0x3FFF

NLMSG_ERROR, NLMSG_DONE = 2, 3
ACK, REPLACE, CREATE = 0x4, 0x100, 0x400
"""Flags of requests that change something."""
DUMP_INTERRUPTED = 0x10
"""Flag of a reply: the dump has objects twice, or lacks some."""
_REQUEST, _DUMP = 0x1, 0x300
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_RECEIVE = 1 << 17
_BATCH = 64
"""Requests per send: their replies fit even the smallest receive buffer."""
TRIES = 10
"""A dump that changes interrupt, or a reply that is lost, is asked for again this often."""
ADVICE = {
    errno.EPERM: "it needs CAP_NET_ADMIN: run it as root or as the systemd service",
    errno.EACCES: "IPv6 may be off: see net.ipv6.conf.all.disable_ipv6",
    errno.ENETDOWN: "the interface is down: 'ip link set' brings it up",
    errno.EOPNOTSUPP: "the kernel lacks policy routing for this family",
    errno.EAFNOSUPPORT: "the kernel lacks this address family",
}
"""Hint for each error number with which the kernel may refuse a request."""
_NOTHING_THERE = (
    *(errno.ESRCH, errno.ENOENT, errno.ENODEV),
    *(errno.EAFNOSUPPORT, errno.EOPNOTSUPP),
)
"""Answers to a dump of what isn't there: a table, a device, an address family."""
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
"""Address families by IP version."""

Refused = Callable[[int, int], None]


def open_socket() -> socket.socket:
    """Return a socket for requests to rtnetlink. Raises OSError."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    opened.bind((0, 0))
    # Before Linux 4.20 a dump can't be filtered: readers skip what they didn't ask for.
    with contextlib.suppress(OSError):
        opened.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
    return opened


class MessageSocket:
    """A netlink socket; all methods block briefly."""

    def __init__(self, opened: Callable[[], socket.socket] = open_socket) -> None:
        self._opened = opened
        self._sequence = 0
        self._socket = opened()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        """Return the bodies of the replies to a dump, of which there may be none.

        An interrupted one is repeated. If each is, the last counts: what changed is announced, and
        read again. Raises NetworkError and OSError.
        """
        bodies: list[bytes] = []
        for left in reversed(range(TRIES)):
            try:
                bodies, is_whole = self._dumped(kind, body, what)
            except OSError as error:
                self._reopen(error, left)
                continue
            if is_whole:
                break
        return bodies

    def get(self, kind: int, body: bytes) -> bytes:
        """Return the body of the reply to a request for one object.

        Raises OSError, with the kernel's number if it refuses.
        """
        left = TRIES
        while True:
            left -= 1
            try:
                self._socket.send(self._message(kind, 0, body))
                return self._reply()
            except OSError as error:
                self._reopen(error, left)

    def change(self, kind: int, flags: int, bodies: Sequence[bytes], refused: Refused) -> None:
        """Send requests that may be repeated; `refused` gets each error number and its index.

        Raises OSError.
        """
        for start in range(0, len(bodies), _BATCH):
            batch = bodies[start : start + _BATCH]
            for left in reversed(range(TRIES)):
                try:
                    codes = self._answers(kind, flags, batch)
                except OSError as error:
                    self._reopen(error, left)
                    continue
                for index, code in enumerate(codes):
                    if code:
                        refused(code, start + index)
                break

    def _reopen(self, error: OSError, left: int) -> None:
        """Begin anew after a lost reply: the rest of its answer would follow the next request."""
        if error.errno != errno.ENOBUFS or not left:
            raise error
        self._socket.close()
        self._socket = self._opened()

    def _answers(self, kind: int, flags: int, batch: Sequence[bytes]) -> list[int]:
        first = self._sequence + 1
        self._socket.send(b"".join(self._message(kind, flags | ACK, each) for each in batch))
        codes: dict[int, int] = {}
        while len(codes) < len(batch):
            for sequence, _, _, body in self._received():
                if first <= sequence < first + len(batch):
                    codes[sequence - first] = -_ERROR.unpack_from(body)[0]
        return [codes[index] for index in range(len(batch))]

    def _reply(self) -> bytes:
        while True:
            for sequence, reply, _, answer in self._received():
                if sequence != self._sequence:
                    continue
                if reply == NLMSG_ERROR:
                    code = -_ERROR.unpack_from(answer)[0]
                    raise OSError(code, os.strerror(code))
                return answer

    def _dumped(self, kind: int, body: bytes, what: str) -> tuple[list[bytes], bool]:
        """Return the bodies of a dump, and True if no change interrupted it."""
        self._socket.send(self._message(kind, _DUMP, body))
        bodies: list[bytes] = []
        seen = 0
        while True:
            for sequence, reply, flags, answer in self._received():
                if sequence != self._sequence:
                    continue
                seen |= flags
                if reply in (NLMSG_DONE, NLMSG_ERROR):
                    code = -_ERROR.unpack_from(answer)[0] if len(answer) >= _ERROR.size else 0
                    if code > 0 and code not in _NOTHING_THERE:
                        raise refusal(code, what)
                    return bodies, not seen & DUMP_INTERRUPTED
                bodies.append(answer)

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        length = HEADER.size + len(body)
        return HEADER.pack(length, kind, flags | _REQUEST, self._sequence, 0) + body

    def _received(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield sequence number, type, flags and body of each message in one datagram."""
        data = self._socket.recv(_RECEIVE)
        at = 0
        while at < len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
            yield sequence, kind, flags, data[at + HEADER.size : at + length]
            at += _aligned(length)


def refusal(code: int, where: str) -> NetworkError:
    """Return the NetworkError for a kernel error number."""
    reason = errno.errorcode.get(code, str(code))
    text = f"the kernel refused it: {os.strerror(code)} ({reason})"
    return NetworkError(text, where=where, hint=ADVICE.get(code))


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded (struct rtattr)."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and value of each attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(max(length, _ATTRIBUTE.size))


def number(value: bytes | None) -> int:
    """Return the number in an attribute, 0 for a missing one."""
    return 0 if value is None else int(NUMBER.unpack(value)[0])


def text(value: bytes | None) -> str | None:
    """Return the text in an attribute, which ends with a zero byte, or None for a missing one."""
    return None if value is None else value.partition(b"\0")[0].decode(errors="replace")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
