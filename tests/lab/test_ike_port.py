"""The UDP port that IKE shares with ESP, as an IKE daemon's session uses it, with real gateways."""

from __future__ import annotations

import contextlib
import socket

import pytest

from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import OUTER
from esp_gw.errors import ControlError
from tests.lab.test_owner import child, sessions, start, target
from tests.support.kernel_peer import inside
from tests.support.labtools import MakePair, answers, drops, ping, start_pings, until
from tests.support.owner_client import IkeSocket, Session

PORT = 4500
IP_FREEBIND = 15


def sockets(both: tuple[Session, Session], stack: contextlib.ExitStack) -> list[IkeSocket]:
    """Return the IKE sockets of two sessions."""
    found = [IkeSocket(session) for session in both]
    for each in found:
        stack.callback(each.close)
    return found


def exchange(a: IkeSocket, b: IkeSocket, version: int, message: bytes = b"a request") -> None:
    """Send a message from a to b, and an answer back."""
    ends = tuple(map(str, OUTER[version]))
    a.send(*ends, message)
    assert b.receive() == (*ends, PORT, message)
    b.send(*ends[::-1], b"answer to " + message)
    assert a.receive() == (*ends[::-1], PORT, b"answer to " + message)


def test_messages_pass_before_there_is_an_sa_and_beside_a_child_in_udp(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    a, b = sockets(both, stack)
    for version in (4, 6):
        exchange(a, b, version)
    first = child(1, encapsulation="udp")
    first.install(both)
    pings = start_pings(pair.a.namespace, target(4), 200, interval=0.005)
    for number in range(50):
        exchange(a, b, 4, b"request %d" % number)
    assert answers(pings) == 200
    both[0].call("RemoveSas", sas=first.refs(0))
    exchange(a, b, 4)
    assert drops(pair.b) == {}


def test_an_address_that_comes_later_receives_too(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    a, b = sockets(sessions(pair, stack), stack)
    add_address(pair.b.namespace, "192.0.2.77/24")
    ends = (str(OUTER[4][0]), "192.0.2.77")

    def arrives() -> bool:
        a.send(*ends, b"hello")
        try:
            return b.receive() == (*ends, PORT, b"hello")
        except TimeoutError:
            return False

    b._socket.settimeout(0.3)
    until(arrives, "the new address receives")


def test_a_new_session_gets_a_new_socket_and_the_former_end_is_closed(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    a, b = sockets(both, stack)
    exchange(a, b, 4)
    both[1].close()
    # Without a session nobody takes them.
    ends = tuple(map(str, OUTER[4]))

    def counted() -> bool:
        a.send(*ends, b"nobody")
        return drops(pair.b)["ike-datagram"] > 0

    until(counted, "without a session it is counted")
    again = Session(pair.b.socket, take_over=True)
    stack.callback(again.close)
    with pytest.raises(ConnectionError):
        b.send(*ends[::-1], b"by the former end")
    fresh = IkeSocket(again)
    stack.callback(fresh.close)
    exchange(a, fresh, 4)


def test_a_gateway_that_was_killed_gives_a_socket_again(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    a, _ = sockets(both, stack)
    first = child(1, encapsulation="udp")
    first.install(both)
    pair.b.kill()
    pair.b.start()
    assert ping(pair.a.namespace, target(4), count=3) == 3
    again = Session(pair.b.socket, take_over=True)
    stack.callback(again.close)
    b = IkeSocket(again)
    stack.callback(b.close)
    exchange(a, b, 4)


def test_a_port_that_another_program_has_is_named_and_the_session_goes_on(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    with inside(pair.a.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((str(OUTER[4][0]), PORT))
        with pytest.raises(ControlError, match=f"{OUTER[4][0]} port {PORT}/udp"):
            both[0].call("GetIkeSocket")
        first = child(1, encapsulation="none")
        first.install(both)
        assert ping(pair.a.namespace, target(4), count=3) == 3
    a, b = sockets(both, stack)
    exchange(a, b, 4)


def test_a_port_that_is_taken_at_a_new_address_keeps_no_child_from_its_changes(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    a, b = sockets(both, stack)
    with inside(pair.a.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        # As any user can, before the address is there.
        other.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        other.bind(("192.0.2.9", PORT))
        add_address(pair.a.namespace, "192.0.2.9/24")

        def is_told() -> bool:
            return any("192.0.2.9 port" in text for text in pair.a.call("GetStatus")["warnings"])

        until(is_told, "the taken port is told")
        first, second = child(1), child(2)
        first.install(both)
        assert ping(pair.a.namespace, target(4), count=3) == 3
        both[0].call("RemoveSas", sas=first.refs(0))
        second.install(both)
        assert ping(pair.a.namespace, target(4), count=3) == 3
        exchange(a, b, 4)
    until(lambda: not is_told(), "the port is free", 40)
    b.send(*map(str, reversed(OUTER[4])), b"to the first")
    b.send(str(OUTER[4][1]), "192.0.2.9", b"to the new one")
    assert {a.receive()[3] for _ in range(2)} == {b"to the first", b"to the new one"}


def test_what_a_daemon_writes_wrongly_harms_nothing(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    a, b = sockets(sessions(pair, stack), stack)
    ends = tuple(map(str, OUTER[4]))
    for wrong in (b"", b"short", bytes(36), bytes(200)):
        a._socket.send(wrong)
    a.send("203.0.113.1", ends[1], b"from an address that is not here")
    a.send(ends[0], str(OUTER[6][1]), b"to the other family")
    a.send(ends[0], ends[1], bytes(60000))
    a.send(*ends, b"port 0", port=0)
    exchange(a, b, 4)


def test_only_the_session_gets_a_socket(make_pair: MakePair, stack: contextlib.ExitStack) -> None:
    pair = start(make_pair)
    sessions(pair, stack)
    with pytest.raises(ControlError, match="not the owner's session"):
        pair.a.call("GetIkeSocket")
