"""An SA replaced by one with the same key: what moves into it, and what begins anew."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, cast

import pytest
import pytest_asyncio

from esp_gw.desired import EngineSettings
from esp_gw.engine.base import Event, HardExpired, LeaseLow, OuterSocket, SoftExpired
from esp_gw.engine.python import engine as python_module
from esp_gw.engine.python import outer as outer_module
from esp_gw.engine.python.engine import PythonEngine
from esp_gw.errors import EngineError
from esp_gw.model import Direction, DropReason, Encapsulation, Lease, Sa
from tests.support.builders import make_sa, mirrored, protect, selector
from tests.support.rig import FakeOuter, packet

OUT = replace(make_sa("out", key=1), tunnel="t")
IN = replace(make_sa("in", Direction.INBOUND, OUT.spi, *mirrored(OUT.selectors), key=1), tunnel="t")
ELSEWHERE = ("198.51.100.7", 777)


class Sends:
    """An outer socket that takes packets, or is full."""

    family = socket.AF_INET

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_full = False
        self.sent: list[tuple[bytes, tuple[Any, ...]]] = []

    def sendto(self, packet: bytes, address: tuple[Any, ...]) -> None:
        if self.is_full:
            raise BlockingIOError
        self.sent.append((bytes(packet), address))

    def fileno(self) -> int:
        return self.fd

    def setsockopt(self, *_: object) -> None: ...

    def getsockopt(self, *_: object) -> bytes:
        return bytes(36)

    def close(self) -> None: ...


class Loop:
    """An engine whose outbound SA's packets its inbound SA opens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._stack: list[socket.socket] = []
        self.sockets: list[Sends] = []
        self.are_full = False
        self.tun, inner = self._pair(socket.SOCK_SEQPACKET)
        self.tun.setblocking(False)
        inner.setblocking(False)
        patch.setattr(python_module, "open_tun", lambda _: inner.detach())
        patch.setattr(outer_module, "open_outer", self._open)
        patch.setattr(outer_module, "open_send_only", self._open)
        self.events: list[Event] = []
        self.engine = PythonEngine()
        self.engine.open(EngineSettings("esp0", 4500, 1), self.events.append)
        self.engine.set_outer_sockets([OuterSocket(OUT.local, way) for way in Encapsulation])
        self.engine.install_outbound(OUT, Lease(1, 1000))
        self.engine.install_inbound(IN, 0)
        self.engine.replace_policies([protect("p", "out", *OUT.selectors)])

    def _pair(self, kind: int) -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair(socket.AF_UNIX, kind)
        self._stack += ends
        return ends

    def _open(self, *_: object) -> Sends:
        self.sockets.append(Sends(self._pair(socket.SOCK_DGRAM)[0].fileno()))
        self.sockets[-1].is_full = self.are_full
        return self.sockets[-1]

    def send(self, count: int = 1) -> list[bytes]:
        """Return the ESP packets of `count` packets from the TUN."""
        for sock in self.sockets:
            sock.sent.clear()
        for _ in range(count):
            self.tun.send(packet())
        self.engine._read_tun()
        return [esp for sock in self.sockets for esp, _ in sock.sent]

    def receive(self, *esps: bytes, address: tuple[Any, ...] = ("192.0.2.2", 4500)) -> int:
        """Return how many of these packets reach the TUN."""
        outer = FakeOuter()
        outer.sock.waiting.extend((esp, 0, 0, address) for esp in esps)
        self.engine._inbound.drain(cast("Any", outer))
        count = 0
        while True:
            try:
                self.tun.recv(2048)
            except BlockingIOError:
                return count
            count += 1

    def drops(self) -> dict[str, int]:
        return dict(self.engine.counters().drops)

    def close(self) -> None:
        self.engine.close()
        for end in self._stack:
            end.close()


@pytest_asyncio.fixture
async def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    loop = Loop(monkeypatch)
    yield loop
    loop.close()


async def test_numbers_window_counters_and_peer_move_into_the_new_sa(loop: Loop) -> None:
    first = loop.send(3)
    assert loop.receive(*first[:2], address=ELSEWHERE) == 2
    loop.engine.replace_sa("in", replace(IN, name="new-in", spi=0x2002, replay_window=64))
    loop.engine.replace_sa("out", replace(OUT, spi=0x2002, pair="new-in"))
    (fourth,) = loop.send()
    assert int.from_bytes(fourth[:8]) == 0x2002 << 32 | 4
    assert loop.receive(fourth, fourth) == 1
    renamed = [(0x2002).to_bytes(4) + esp[4:] for esp in first]
    # Its SPI is authenticated, so a packet under the former one can't come under the new.
    assert loop.receive(*renamed, first[2]) == 0
    assert loop.drops() == {
        DropReason.REPLAY_DUPLICATE: 3,
        DropReason.AUTH_FAILED: 1,
        DropReason.UNKNOWN_SPI: 1,
    }
    sas = loop.engine.counters().sas
    assert (sas["out"].packets, sas["out"].seq, sas["out"].lease_end) == (4, 5, 1000)
    assert (sas["new-in"].packets, sas["new-in"].seq) == (3, 4)
    # The newest packet came from the configured address again.
    assert (str(sas["out"].remote), sas["out"].remote_port) == ("192.0.2.2", 4500)
    assert loop.engine.advanced_replay_floors() == {"new-in": 4}


async def test_the_peer_stays_where_it_is_until_its_configured_address_is_another(
    loop: Loop,
) -> None:
    def ends() -> set[tuple[str, int]]:
        sas = loop.engine.counters().sas.values()
        return {(str(sa.remote), sa.remote_port) for sa in sas}

    assert loop.receive(*loop.send(), address=ELSEWHERE) == 1
    assert ends() == {ELSEWHERE}
    for tunnel in ("t", "u", None):
        with loop.engine.at_once():
            loop.engine.replace_sa("in", replace(IN, tunnel=tunnel))
            loop.engine.replace_sa("out", replace(OUT, tunnel=tunnel, pair="in"))
        assert ends() == {ELSEWHERE}
        extra = make_sa("extra", Direction.INBOUND, 0x2003)
        loop.engine.install_inbound(
            replace(extra, tunnel=tunnel, pair=None if tunnel else "out"), 0
        )
        assert ends() == {ELSEWHERE}
        loop.engine.remove_sas(["extra"])
    with loop.engine.at_once():
        loop.engine.replace_sa("in", replace(IN, remote_port=4501))
        loop.engine.replace_sa("out", replace(OUT, remote_port=4501))
    assert ends() == {("192.0.2.2", 4501)}
    # One peer for both: it moves for both.
    assert loop.receive(*loop.send(), address=ELSEWHERE) == 1
    assert ends() == {ELSEWHERE}


async def test_a_policy_uses_the_new_sa_and_its_selectors_from_the_next_packet_on(
    loop: Loop,
) -> None:
    assert len(loop.send()) == 1
    loop.engine.replace_sa("out", replace(OUT, selectors=(selector("10.9.0.0/16"),)))
    assert loop.send() == []
    loop.engine.replace_sa("out", OUT)
    last = loop.send()
    loop.engine.replace_sa("in", replace(IN, selectors=(selector("10.9.0.0/16"),)))
    assert loop.receive(*last) == 0
    assert loop.drops() == {DropReason.SELECTOR_MISMATCH: 2}
    assert loop.engine.counters().sas["out"].packets == 2


async def test_a_former_sa_goes_on_receiving_beside_one_with_its_name(loop: Loop) -> None:
    early, late = loop.send(2)
    assert loop.receive(early) == 1
    new_in = replace(IN, spi=0x2002, keymat=make_sa(key=2).keymat)
    new_out = replace(OUT, spi=0x2002, keymat=make_sa(key=2).keymat)
    with loop.engine.at_once():
        loop.engine.replace_sa("in", replace(IN, name="in~old"))
        loop.engine.install_inbound(new_in, 0)
        loop.engine.replace_sa("out", replace(OUT, name="out~old"))
        loop.engine.install_outbound(new_out, Lease(1, 9))
    assert loop.receive(late, *loop.send(), early) == 2
    loop.engine.remove_sas(["in~old", "out~old"])
    assert loop.receive(late, *loop.send()) == 1
    assert loop.drops() == {DropReason.REPLAY_DUPLICATE: 1, DropReason.UNKNOWN_SPI: 1}


async def test_packets_that_wait_for_a_full_socket_leave_by_it_and_count_for_the_new_sa(
    loop: Loop,
) -> None:
    udp, raw = loop.sockets
    udp.is_full = loop.are_full = True
    assert loop.send(2) == []
    *_, own = loop.sockets
    loop.engine.replace_sa("out", replace(OUT, name="new", spi=0x2002, remote_port=4501))
    own.is_full = False
    loop.engine._outers[OuterSocket(OUT.local, OUT.encapsulation)]._own["192.0.2.2"]._writable()
    assert [(int.from_bytes(esp[:8]), to) for esp, to in own.sent] == [
        (OUT.spi << 32 | seq, ("192.0.2.2", 4501)) for seq in (1, 2)
    ]
    assert loop.engine.counters().sas["new"].packets == 2
    own.is_full = True
    loop.engine.replace_policies([protect("p", "new", *OUT.selectors)])
    loop.send()
    # A socket of another kind doesn't take them.
    loop.engine.replace_sa("new", replace(OUT, encapsulation=Encapsulation.NONE))
    assert loop.engine.counters().sas["out"].drops == {DropReason.SEND_ERROR: 1}
    assert raw.sent == []


async def test_packets_that_wait_for_the_socket_of_a_peer_that_an_sa_has_left_go_by_the_shared_one(
    loop: Loop,
) -> None:
    udp, _ = loop.sockets
    udp.is_full = loop.are_full = True
    assert loop.send(2) == []
    outer = loop.engine._outers[OuterSocket(OUT.local, OUT.encapsulation)]
    assert outer._own.keys() == {"192.0.2.2"}
    loop.engine.replace_sa("out", replace(OUT, remote=ip_address("192.0.2.3")))
    assert not outer._own
    udp.is_full = False
    outer._shared._writable()
    assert [(int.from_bytes(esp[4:8]), to[0]) for esp, to in udp.sent] == [
        (seq, "192.0.2.3") for seq in (1, 2)
    ]


async def test_esn_switched_off_and_on_never_brings_a_number_back(loop: Loop) -> None:
    last = 2**32 - 1
    engine = loop.engine
    engine.remove_sas(["out"])
    engine.install_outbound(OUT, Lease(last - 1, last + 100))
    assert _numbers(loop.send(3)) == [last - 1, last, last + 1]
    engine.replace_sa("out", replace(OUT, esn=False))
    assert loop.send() == []
    engine.extend_lease("out", Lease(last + 200, last + 300))
    assert loop.send() == []
    assert loop.events == [HardExpired("out")]
    assert engine.counters().sas["out"].seq == last + 2
    engine.replace_sa("out", OUT)
    assert loop.events[1:] == [LeaseLow("out")]
    assert loop.send() == []
    assert engine.counters().sas["out"].seq == last + 2
    with pytest.raises(EngineError, match="goes back"):
        engine.extend_lease("out", Lease(last + 1, last + 3))
    engine.extend_lease("out", Lease(last + 400, last + 402))
    assert _numbers(loop.send(3)) == [last + 400, last + 401]
    engine.replace_sa("out", replace(OUT, esn=False))
    assert loop.send() == []
    assert loop.events.count(HardExpired("out")) == 2
    assert loop.drops() == {DropReason.SEQ_EXHAUSTED: 3, DropReason.LEASE_EXHAUSTED: 2}


def _numbers(esps: list[bytes]) -> list[int]:
    return [int.from_bytes(esp[8:16]) for esp in esps]


async def test_a_narrower_window_refuses_what_is_left_of_it(loop: Loop) -> None:
    esps = [*loop.send(60), *loop.send(60)]
    assert loop.receive(esps[119], esps[20]) == 2
    loop.engine.replace_sa("in", replace(IN, replay_window=64))
    assert loop.receive(esps[55], esps[56]) == 1
    loop.engine.replace_sa("in", IN)
    assert loop.receive(esps[30], esps[57]) == 1
    assert loop.drops() == {DropReason.REPLAY_OLD: 1, DropReason.REPLAY_DUPLICATE: 1}


async def test_a_packet_that_was_accepted_with_esn_is_not_accepted_without(loop: Loop) -> None:
    loop.engine.replace_sa("out", replace(OUT, esn=False))
    without = loop.send()
    loop.engine.replace_sa("out", OUT)
    assert loop.receive(*loop.send()) == 1
    loop.engine.replace_sa("in", replace(IN, esn=False))
    assert loop.receive(*without) == 1
    loop.engine.replace_sa("in", IN)
    assert loop.receive(*without) == 0
    assert loop.drops() == {DropReason.REPLAY_DUPLICATE: 1}


async def test_what_was_told_with_a_former_name_is_told_again(loop: Loop) -> None:
    loop.engine.remove_sas(["out"])
    last = 2**32 - 1
    plain = replace(OUT, esn=False)
    loop.engine.install_outbound(plain, Lease(last - 9, last + 1))
    loop.send(6)
    assert loop.events == [SoftExpired("out"), LeaseLow("out")]
    loop.engine.replace_sa("out", replace(plain, replay_window=64))
    loop.send()
    assert len(loop.events) == 2
    loop.engine.replace_sa("out", replace(plain, name="new"))
    loop.engine.replace_policies([protect("p", "new", *OUT.selectors)])
    loop.send()
    assert loop.events[2:] == [LeaseLow("new")]


async def test_keepalives_go_on_in_their_rhythm(loop: Loop) -> None:
    sa: Sa = replace(OUT, keepalive=20)
    loop.engine.replace_sa("out", sa)
    armed = loop.engine._keepalives["out"]
    loop.engine.replace_sa("out", replace(sa, name="new", remote_port=4501))
    assert loop.engine._keepalives == {"new": armed}
    loop.engine.replace_sa("new", replace(sa, keepalive=30))
    assert armed.cancelled()
    assert loop.engine._keepalives["out"] is not armed
    loop.engine.replace_sa("out", OUT)
    assert loop.engine._keepalives == {}
