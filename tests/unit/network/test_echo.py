"""Echo requests on the loopback, where this user may; sizes, numbers, and what answers nothing."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from esp_gw.cli.denial import is_denial
from esp_gw.errors import NetworkError
from esp_gw.network import echo as echo_module
from esp_gw.network.echo import HEADER, Echo, measure_path, overhead

HERE = ip_address("127.0.0.1")


class Wire:
    """A raw ICMP socket whose peer answers packets of up to `largest` bytes."""

    def __init__(self, largest: int = 1500, *, foreign: bool = False) -> None:
        self.sent: list[bytes] = []
        self._largest = largest
        self._foreign = foreign
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, packet: bytes) -> int:
        self.sent.append(packet)
        kind, code, _, identifier, number = HEADER.unpack_from(packet)
        assert (kind, code) == (8, 0)
        if len(packet) + 20 > 1500:
            raise OSError(errno.EMSGSIZE, "Message too long")
        if len(packet) + 20 <= self._largest:
            if self._foreign:
                self._theirs.send(bytes(IP(src="127.0.0.1")) + HEADER.pack(0, 0, 0, 7, number))
            answer = HEADER.pack(0, 0, 0, identifier, number) + packet[HEADER.size :]
            self._theirs.send(bytes(IP(src="127.0.0.1")) + answer)
        return len(packet)

    def fileno(self) -> int:
        return self._ours.fileno()

    def recv(self, size: int) -> bytes:
        return self._ours.recv(size)

    def setsockopt(self, *_: object) -> None: ...

    def setblocking(self, _: bool) -> None: ...

    def bind(self, _: object) -> None: ...

    def connect(self, _: object) -> None: ...

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@contextlib.contextmanager
def over(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[Echo]:
    monkeypatch.setattr(echo_module, "_opened", lambda _version: (wire, True))
    with contextlib.closing(Echo(HERE, HERE)) as echo:
        yield echo


def soon() -> float:
    return time.monotonic() + 0.2


def test_a_request_has_its_size_and_a_right_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    with over(wire, monkeypatch) as echo:
        for size in (28, 29, 84, 1499):
            echo.send(size)
            packet = wire.sent[-1]
            assert len(packet) == size - 20
            made = ICMP(packet)
            checksum = made.chksum
            del made.chksum
            assert ICMP(bytes(made)).chksum == checksum


def test_each_reply_is_told_once_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(foreign=True)
    with over(wire, monkeypatch) as echo:
        numbers = [echo.send(84), echo.send(84)]
        assert [each.number for each in echo.answers(soon())] == numbers
        assert list(echo.answers(soon())) == []


def test_a_late_reply_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with over(Wire(), monkeypatch) as echo:
        echo.send(84)
        echo.forget()
        last = echo.send(84)
        assert [each.number for each in echo.answers(soon())] == [last]


def test_the_largest_answered_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with over(Wire(largest=1234), monkeypatch) as echo:
        assert measure_path(echo, [1500, 9000], 0.2) == 0
        assert measure_path(echo, range(1214, 1254, 2), 0.2) == 1234
        assert measure_path(echo, [68], 0.2) == 68
        # The kernel's refusal of a large one is no error of the way.
        assert echo.refused == ""


def test_garbage_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(largest=0)
    with over(wire, monkeypatch) as echo:
        echo.send(84)
        for packet in (b"\x45", bytes(IP() / Raw(b"\0\0\0")), bytes(IP() / ICMP(type=3))):
            wire._theirs.send(packet)
        assert list(echo.answers(soon())) == []


def test_an_error_of_the_kernel_is_kept_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    with over(wire, monkeypatch) as echo:

        def refuse(_packet: bytes) -> int:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

        wire.send = refuse  # type: ignore[method-assign]
        echo.send(84)
        assert echo.refused == "No route to host"


def test_overhead_is_the_headers() -> None:
    assert (overhead(4), overhead(6)) == (28, 48)


def test_a_socket_that_is_denied_is_a_denial(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(echo_module.socket, "socket", denied)
    with pytest.raises(NetworkError, match="no ICMP socket: Operation not permitted") as refused:
        Echo(HERE, HERE)
    assert is_denial(refused.value)


def test_an_icmp_socket_will_do_where_a_raw_one_is_denied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.socket

    def some(family: int, kind: int, protocol: int) -> Any:
        if kind & socket.SOCK_RAW == socket.SOCK_RAW:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(family, socket.SOCK_DGRAM)

    monkeypatch.setattr(echo_module.socket, "socket", some)
    opened, is_raw = echo_module._opened(4)
    opened.close()
    assert not is_raw
