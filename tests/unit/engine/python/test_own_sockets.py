"""Peers that meet a full outer socket get one of their own: limits, room, and what is received."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from itertools import count
from typing import Any, cast

import pytest

from esp_gw import limits
from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.base import OuterSocket
from esp_gw.engine.python import outer as outer_module
from esp_gw.engine.python.outer import MAX_OWN, OPEN_INTERVAL, Outer
from esp_gw.engine.python.peers import Peer
from esp_gw.engine.python.sad import OutboundState
from esp_gw.engine.python.waiting import MAX_WAIT
from esp_gw.model import DropReason, Encapsulation, Lease
from tests.support.builders import make_sa
from tests.support.rig import FakeLoop

WANTED = OuterSocket(make_sa().local, Encapsulation.UDP)


class Sock:
    """A socket that takes packets, or is full."""

    family = socket.AF_INET
    numbers = count(100)

    def __init__(self, is_full: bool = False) -> None:
        self.fd = next(self.numbers)
        self.is_full = is_full
        self.is_closed = False
        self.sent: list[tuple[bytes, str]] = []

    def sendto(self, packet: bytes, address: tuple[Any, ...]) -> None:
        assert not self.is_closed
        if self.is_full:
            raise BlockingIOError
        self.sent.append((bytes(packet), address[0]))

    def fileno(self) -> int:
        return self.fd

    def setsockopt(self, *_: object) -> None: ...

    def close(self) -> None:
        self.is_closed = True


class Loop(FakeLoop):
    def remove_reader(self, _: object) -> None: ...

    def remove_writer(self, fd: Any) -> None:
        self.writers.pop(fd, None)


class Rig:
    """An outer socket that is full, and those opened beside it, which are as `are_full` says."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.loop, self.shared = Loop(), Sock(is_full=True)
        self.own: list[Sock] = []
        self.are_full = False
        self.error: OSError | None = None
        self.tries = 0
        patch.setattr(outer_module, "open_outer", lambda *_: self.shared)
        patch.setattr(outer_module, "open_send_only", self._open)
        self.outer = Outer(WANTED, 4500, 0, cast("Any", self.loop))
        self._states: dict[int, OutboundState] = {}

    def _open(self, *_: object) -> Sock:
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.own.append(Sock(self.are_full))
        return self.own[-1]

    def state(self, peer: int) -> OutboundState:
        """Return the SA of a peer."""
        if peer not in self._states:
            sa = make_sa(f"sa-{peer}", spi=0x1000 + peer, remote=_host(peer))
            aead = make_aead(sa.suite, sa.keymat)
            self._states[peer] = OutboundState(sa, Lease(1, 9), aead, self.outer, Peer(sa))
        return self._states[peer]

    def send(self, peer: int, payload: bytes = b"packet") -> None:
        state = self.state(peer)
        assert self.outer.send(state, memoryview(payload), len(payload), 0, False) is None

    def run_writers(self) -> None:
        for callback in list(self.loop.writers.values()):
            callback()


def _host(peer: int) -> str:
    return f"198.51.100.{peer}"


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_a_peer_that_meets_a_full_socket_goes_on_at_once_by_its_own(rig: Rig) -> None:
    rig.are_full = True
    rig.send(1, b"slow")
    rig.are_full = False
    for payload in (b"a", b"b"):
        rig.send(2, payload)
    slow, healthy = rig.own
    assert healthy.sent == [(b"a", _host(2)), (b"b", _host(2))]
    assert (rig.state(1).packets, rig.state(2).packets) == (0, 2)
    # Only the full one is polled, and its packet goes by it.
    assert set(rig.loop.writers) == {slow}
    slow.is_full = False
    rig.run_writers()
    assert (slow.sent, rig.loop.writers) == ([(b"slow", _host(1))], {})
    assert rig.shared.sent == []


def test_a_peer_that_moves_begins_with_the_shared_socket_again(rig: Rig) -> None:
    rig.send(1)
    rig.shared.is_full = False
    rig.send(1)
    rig.state(1).peer.address = (_host(9), 61000)
    rig.send(1)
    assert [host for _, host in rig.own[0].sent] == [_host(1)] * 2
    assert rig.shared.sent == [(b"packet", _host(9))]


def test_a_keepalive_goes_by_the_socket_of_its_peer(rig: Rig) -> None:
    rig.send(1)
    assert rig.outer.send_keepalive((_host(1), 4500))
    assert rig.own[0].sent[1:] == [(b"\xff", _host(1))]
    assert not rig.outer.send_keepalive((_host(2), 4500))


def test_the_socket_that_was_needed_longest_ago_and_is_idle_makes_room(rig: Rig) -> None:
    rig.are_full = True
    rig.send(0)
    rig.are_full = False
    for peer in range(1, MAX_OWN + 1):
        rig.loop.advance(MAX_WAIT / 100)
        rig.send(peer)
    closed = [sock.is_closed for sock in rig.own]
    # The first is waited for.
    assert closed == [False, True, *[False] * (MAX_OWN - 1)]
    assert [len(sock.sent) for sock in rig.own] == [0, *[1] * MAX_OWN]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EPERM, errno.EADDRINUSE])
def test_where_no_socket_can_be_opened_peers_share_and_it_is_tried_again_later(
    rig: Rig, number: int
) -> None:
    rig.error = OSError(number, os.strerror(number))
    for _ in range(3):
        rig.send(1)
    rig.send(2)
    assert (rig.tries, rig.loop.writers.keys()) == (1, {rig.shared})
    rig.error = None
    rig.loop.advance(OPEN_INTERVAL * 0.9)
    rig.send(2)
    assert rig.tries == 1
    rig.loop.advance(OPEN_INTERVAL * 0.1)
    rig.send(2)
    assert (rig.tries, len(rig.own[0].sent)) == (2, 1)
    assert rig.state(1).drops == {DropReason.QUEUE_TIMEOUT: 3}


def test_where_all_are_waited_for_another_peer_shares(rig: Rig) -> None:
    rig.are_full = True
    for peer in range(MAX_OWN + 2):
        rig.send(peer)
    assert (len(rig.own), rig.tries) == (MAX_OWN, MAX_OWN)
    rig.shared.is_full = False
    rig.run_writers()
    assert [host for _, host in rig.shared.sent] == [_host(MAX_OWN), _host(MAX_OWN + 1)]


def test_sockets_of_peers_without_an_sa_are_closed_and_the_others_stay(rig: Rig) -> None:
    for peer in (1, 2):
        rig.send(peer)
    rig.outer.close_unused({_host(2), _host(3)})
    assert [sock.is_closed for sock in rig.own] == [True, False]


def test_what_waits_for_any_socket_is_counted_when_its_sa_or_the_outer_socket_goes(
    rig: Rig,
) -> None:
    rig.are_full = True
    for peer in (1, 2):
        rig.send(peer)
    rig.outer.discard(rig.state(1))
    assert rig.state(1).drops == {DropReason.SEND_ERROR: 1}
    assert set(rig.loop.writers) == {rig.own[1]}
    order: list[Sock] = []
    for sock in (rig.shared, *rig.own):
        sock.close = lambda sock=sock: order.append(sock)  # type: ignore[method-assign, misc]
    rig.outer.close()
    assert rig.state(2).drops == {DropReason.SEND_ERROR: 1}
    assert (order, rig.loop.writers) == ([*rig.own, rig.shared], {})


LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with closing(asyncio.new_event_loop()) as loop:
        yield loop


@pytest.mark.parametrize("version", LOOPBACK)
def test_a_udp_socket_receives_all_while_sockets_that_only_send_come_and_go(
    loop: asyncio.AbstractEventLoop, version: int
) -> None:
    wanted = OuterSocket(ip_address(LOOPBACK[version]), Encapsulation.UDP)
    with closing(Outer(wanted, 0, 0, loop)) as outer:
        target = outer.sock.getsockname()
        with socket.socket(outer.sock.family, socket.SOCK_DGRAM) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                stranger.bind(target)
        for number in range(200):
            if number % 5 < 3:
                outer._next_open = 0.0
                assert outer._open_own(_host(number % 40)) is not None
            else:
                outer.close_unused(outer._own.keys() - {next(iter(outer._own))})
            with socket.socket(outer.sock.family, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"%d" % number, target)
        received = [int(outer.sock.recv(100)) for _ in range(200)]
        assert received == list(range(200))
        for own in outer._own.values():
            assert own.sock.getsockname() == target
            with pytest.raises(BlockingIOError):
                own.sock.recv(100)


def test_the_last_open_files_are_left_to_others(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = OuterSocket(ip_address(LOOPBACK[4]), Encapsulation.UDP)
    with closing(Outer(wanted, 0, 0, loop)) as outer:
        newest = outer.sock.fileno() + 1
        limit = newest + limits.FILES_FOR_OTHERS
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        assert outer._open_own("127.0.0.2") is None
        outer._next_open = 0.0
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit + 64, limit + 64))
        assert outer._open_own("127.0.0.2") is not None
