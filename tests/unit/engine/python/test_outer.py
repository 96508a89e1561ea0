"""Back-pressure of an outer socket: queueing, counters and order."""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.crypto.openssl import make_aead
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import OuterSocket
from esp_gw.engine.python import engine as python_module
from esp_gw.engine.python import outer as outer_module
from esp_gw.engine.python.engine import PythonEngine
from esp_gw.engine.python.outer import Outer
from esp_gw.engine.python.peers import Peer
from esp_gw.engine.python.sad import OutboundState
from esp_gw.engine.python.waiting import MAX_BYTES, MAX_WAIT, OVERHEAD, TRY_INTERVAL
from esp_gw.errors import EngineError
from esp_gw.model import Direction, DropReason, Lease
from tests.support.builders import make_sa
from tests.support.rig import FakeLoop

FULL = BlockingIOError()
FULL_RAW = OSError(errno.ENOBUFS, "No buffer space available")
BROKEN = OSError(errno.ENETUNREACH, "Network is unreachable")
LONG = OSError(errno.EMSGSIZE, "Message too long")


class ScriptedSocket:
    """Socket whose sends raise the entries of `faults`, one per call, then succeed."""

    def __init__(self) -> None:
        self.fd = 9
        self.faults: deque[OSError | None] = deque()
        self.taken: list[tuple[bytes, tuple[Any, ...]]] = []
        self.dropped = 0

    def sendto(self, packet: bytes, address: tuple[Any, ...]) -> None:
        fault = self.faults.popleft() if self.faults else None
        if fault is not None:
            raise fault
        self.taken.append((bytes(packet), address))

    def fileno(self) -> int:
        return self.fd

    def setsockopt(self, *_: object) -> None: ...

    def getsockopt(self, *_: object) -> bytes:
        return struct.pack("=9I", *bytes(8), self.dropped)

    def close(self) -> None: ...

    @property
    def family(self) -> int:
        return 2


class Loop(FakeLoop):
    def remove_reader(self, _: object) -> None: ...

    def remove_writer(self, fd: Any) -> None:
        self.writers.pop(fd, None)


def refuse(*_: object) -> socket.socket:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.fixture(autouse=True)
def _one_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer gets a socket of its own."""
    monkeypatch.setattr(outer_module, "open_send_only", refuse)


class Rig:
    def __init__(self) -> None:
        self.sock, self.loop = ScriptedSocket(), Loop()
        wanted = OuterSocket(make_sa().local, make_sa().encapsulation)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outer_module, "open_outer", lambda *_: self.sock)
            self.outer = Outer(wanted, 4500, 1, cast("Any", self.loop))
        self.one, self.two = (
            OutboundState(sa, Lease(1, 9), make_aead(sa.suite, sa.keymat), self.outer, Peer(sa))
            for sa in (make_sa("one", spi=0x1001), make_sa("two", spi=0x1002))
        )

    def send(self, state: OutboundState, payload: bytes = b"packet") -> DropReason | None:
        return self.outer.send(state, memoryview(payload), len(payload), 0, False)

    def run_writers(self) -> None:
        for callback in list(self.loop.writers.values()):
            callback()


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("full", [FULL, FULL_RAW])
def test_a_packet_is_counted_when_the_socket_takes_it(rig: Rig, full: OSError) -> None:
    rig.sock.faults.extend([full, full])
    assert [rig.send(rig.one, b"%d" % n) for n in range(3)] == [None] * 3
    assert (rig.one.packets, rig.sock.taken) == (0, [])
    rig.run_writers()
    assert (rig.one.packets, len(rig.loop.writers)) == (0, 1)
    rig.run_writers()
    assert (rig.one.packets, rig.one.bytes, rig.loop.writers) == (3, 3, {})
    assert [packet for packet, _ in rig.sock.taken] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("fault", "reason"), [(BROKEN, DropReason.SEND_ERROR), (LONG, DropReason.TOO_BIG)]
)
def test_a_queued_packet_that_fails_is_a_drop_of_its_sa(
    rig: Rig, fault: OSError, reason: DropReason
) -> None:
    rig.sock.faults.extend([FULL, None, fault])
    for state in (rig.one, rig.two, rig.one):
        rig.send(state)
    rig.run_writers()
    assert (rig.one.packets, rig.one.drops) == (2, {})
    assert (rig.two.packets, rig.two.drops) == (0, {reason: 1})


def test_queued_packets_of_a_removed_sa_are_counted_and_not_sent(rig: Rig) -> None:
    rig.sock.faults.append(FULL)
    for state in (rig.one, rig.two, rig.one):
        rig.send(state)
    rig.outer.discard(rig.one)
    rig.outer.discard(rig.one)
    assert (rig.one.packets, rig.one.drops) == (0, {DropReason.SEND_ERROR: 2})
    rig.run_writers()
    assert (rig.two.packets, dict(rig.two.drops), len(rig.sock.taken)) == (1, {}, 1)


def test_queued_packets_are_counted_when_the_socket_closes(rig: Rig) -> None:
    rig.sock.faults.append(FULL)
    for state in (rig.one, rig.two, rig.one):
        rig.send(state)
    rig.outer.close()
    assert (rig.one.drops, rig.two.drops) == (
        {DropReason.SEND_ERROR: 2},
        {DropReason.SEND_ERROR: 1},
    )
    assert rig.loop.writers == {}


def test_queued_packets_go_to_the_peers_current_address(rig: Rig) -> None:
    rig.sock.faults.append(FULL)
    rig.send(rig.one)
    rig.one.peer.address = ("203.0.113.9", 61000)
    rig.run_writers()
    assert rig.sock.taken == [(b"packet", ("203.0.113.9", 61000))]


def test_a_keepalive_is_never_queued(rig: Rig) -> None:
    rig.sock.faults.extend([None, FULL, BROKEN, FULL])
    assert [rig.outer.send_keepalive(rig.one.peer.address) for _ in range(3)] == [
        True,
        False,
        False,
    ]
    rig.send(rig.one)
    assert not rig.outer.send_keepalive(rig.one.peer.address)
    rig.run_writers()
    assert [packet for packet, _ in rig.sock.taken] == [b"\xff", b"packet"]


def test_a_dummy_is_neither_queued_nor_counted_as_a_packet(rig: Rig) -> None:
    def send() -> DropReason | None:
        return rig.outer.send_now(rig.one, memoryview(b"dummy"))

    rig.sock.faults.extend([None, FULL, FULL_RAW, BROKEN, LONG])
    full, lost, long = DropReason.QUEUE_FULL, DropReason.SEND_ERROR, DropReason.TOO_BIG
    assert [send() for _ in range(5)] == [None, full, full, lost, long]
    assert [packet for packet, _ in rig.sock.taken] == [b"dummy"]
    assert (rig.one.packets, rig.one.drops) == (0, {})
    assert not rig.outer.is_full(rig.one.peer.address)
    rig.sock.faults.append(FULL)
    rig.send(rig.one)
    assert rig.outer.is_full(rig.one.peer.address)


def test_the_kernel_s_count_of_drops_wraps_and_ours_does_not(rig: Rig) -> None:
    counted = []
    for rig.sock.dropped in (0, 5, 5, 2**32 - 1, 3):
        counted.append(rig.outer.dropped())
    assert counted == [0, 5, 5, 2**32 - 1, 2**32 + 3]


@given(
    st.lists(st.sampled_from(["one", "two", "write", "discard", "time"]), max_size=60),
    st.lists(st.sampled_from([None, FULL, FULL_RAW, BROKEN, LONG]), max_size=60),
)
def test_every_packet_is_sent_queued_or_counted_as_a_drop(
    turns: list[str], faults: list[OSError | None]
) -> None:
    rig = Rig()
    rig.sock.faults.extend(faults)
    given_up = 0
    for turn in turns:
        match turn:
            case "write":
                rig.run_writers()
            case "discard":
                rig.outer.discard(rig.two)
            case "time":
                rig.loop.advance(MAX_WAIT / 3)
            case name:
                given_up += rig.send(rig.one if name == "one" else rig.two) is not None
    sent = rig.one.packets + rig.two.packets
    assert sent == len(rig.sock.taken)
    rig.outer.close()
    dropped = rig.one.drops.total() + rig.two.drops.total() + given_up
    assert turns.count("one") + turns.count("two") == sent + dropped


def test_a_full_queue_drops_its_oldest_packets(rig: Rig) -> None:
    rig.sock.faults.append(FULL)
    room = MAX_BYTES // (1000 + OVERHEAD)
    for n in range(room + 2):
        assert rig.send(rig.one if n else rig.two, n.to_bytes(4) + bytes(996)) is None
    assert (dict(rig.one.drops), dict(rig.two.drops)) == (
        {DropReason.QUEUE_FULL: 1},
        {DropReason.QUEUE_FULL: 1},
    )
    rig.run_writers()
    sent = [int.from_bytes(packet[:4]) for packet, _ in rig.sock.taken]
    assert sent == list(range(2, room + 2))


def test_a_packet_that_waits_too_long_is_dropped(rig: Rig) -> None:
    rig.sock.faults.extend([FULL] * 9)
    rig.send(rig.one)
    rig.loop.advance(0.6 * MAX_WAIT)
    rig.send(rig.two)
    rig.loop.advance(0.6 * MAX_WAIT)
    assert (dict(rig.one.drops), dict(rig.two.drops)) == ({DropReason.QUEUE_TIMEOUT: 1}, {})
    assert len(rig.loop.writers) == 1
    rig.loop.advance(0.6 * MAX_WAIT)
    assert dict(rig.two.drops) == {DropReason.QUEUE_TIMEOUT: 1}
    # Nothing waits: the socket is not polled, and the next packet tries it.
    assert rig.loop.writers == {}
    assert not [timer for timer in rig.loop.timers if not timer.cancelled]
    rig.sock.faults.clear()
    rig.send(rig.one)
    assert len(rig.sock.taken) == 1


def test_a_full_socket_is_tried_again_while_packets_come_but_not_for_each(rig: Rig) -> None:
    rig.sock.faults.extend([FULL, FULL])
    for _ in range(3):
        rig.send(rig.one)
    assert len(rig.sock.faults) == 1
    rig.loop.advance(TRY_INTERVAL)
    for _ in range(3):
        rig.send(rig.one)
    assert (len(rig.sock.faults), rig.one.packets) == (0, 0)
    rig.loop.advance(TRY_INTERVAL)
    rig.send(rig.one)
    assert (rig.one.packets, rig.loop.writers) == (7, {})


def test_a_writable_socket_that_refuses_is_not_polled_without_end(rig: Rig) -> None:
    # A route that waits for another program's key answers EAGAIN, too.
    rig.sock.faults.extend([FULL] * 20)
    rig.send(rig.one)
    rig.send(rig.two)
    polls = 0
    while rig.loop.writers:
        rig.run_writers()
        polls += 1
    assert polls <= 4
    assert rig.one.drops == rig.two.drops == {DropReason.SEND_ERROR: 1}


@pytest.fixture
async def opened(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[PythonEngine, ScriptedSocket]]:
    """Yield an engine with one scripted outer socket."""
    tun, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), ScriptedSocket()
    with tun[0], tun[1], socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as real:
        sock.fd = real.fileno()
        monkeypatch.setattr(outer_module, "open_outer", lambda *_: sock)
        monkeypatch.setattr(python_module, "open_tun", lambda _: tun[0].detach())
        engine = PythonEngine()
        engine.open(EngineSettings("esp0", 4500, 1), lambda _: None)
        local = make_sa()
        engine.set_outer_sockets([OuterSocket(local.local, local.encapsulation)])
        yield engine, sock
        engine.close()


async def test_sas_installed_at_once_are_all_removed_if_one_is_refused(
    opened: tuple[PythonEngine, ScriptedSocket],
) -> None:
    engine, _ = opened
    first = make_sa("first/in", Direction.INBOUND, 0x1002)
    engine.install_inbound(first, 7)
    with pytest.raises(EngineError, match="another inbound SA"), engine.at_once():
        engine.install_outbound(make_sa(), Lease(1, 9))
        engine.install_inbound(make_sa("t/in", Direction.INBOUND, 0x1003), 0)
        engine.install_inbound(make_sa("x/in", Direction.INBOUND, 0x1002), 0)
    assert set(engine.counters().sas) == {"first/in"}
    with pytest.raises(EngineError, match="no such SA"):
        engine.remove_sas(["first/in", "t/in"])
    assert engine.counters().sas["first/in"].seq == 7


async def test_the_counters_of_a_removed_sa_include_its_queued_packets(
    opened: tuple[PythonEngine, ScriptedSocket],
) -> None:
    engine, sock = opened
    engine.install_outbound(make_sa(), Lease(1, 9))
    engine.install_inbound(make_sa("t/in", Direction.INBOUND, 0x1002), 0)
    sock.faults.append(FULL)
    state = engine._outbound.sas["t/out"]
    state.outer.send(state, memoryview(b"packet"), 6, 0, False)
    engine._inbound._enqueue(engine._inbound.sas[0x1002], memoryview(b"packet"))
    out_counters, in_counters = engine.remove_sas(["t/out", "t/in"])
    assert out_counters.drops == {DropReason.SEND_ERROR: 1}
    assert in_counters.drops == {DropReason.TUN_ERROR: 1}
    totals = engine.counters()
    assert (totals.packets_out, totals.packets_in) == (0, 0)
    assert totals.drops == {DropReason.SEND_ERROR: 1, DropReason.TUN_ERROR: 1}
