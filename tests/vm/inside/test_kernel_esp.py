"""Traffic between a gateway and the kernel's own ESP, in both directions."""

from __future__ import annotations

import platform
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, TypeVar

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.model import MIN_REPLAY_WINDOW, SUITES, Encapsulation, Mode
from tests.support.engines import ENGINES
from tests.support.evidence import RecordProperty, record_trial
from tests.support.kernel_peer import (
    TIMEOUT,
    Link,
    Peers,
    kernel_peers,
    sizes,
    with_keys,
    write_configuration,
)
from tests.support.matrix import every_run
from tests.support.pinger import message

Function = TypeVar("Function", bound=Callable[..., object])

WINDOWS = (32, 64, 128, 1024, 4096)
OUR_WINDOWS = (MIN_REPLAY_WINDOW, 128, 512, 1024, 4096)
SHAPES = list(product(Mode, Encapsulation, (4, 6), (True, False)))
# From one byte to several fragments, with every padding length, and around the path MTU.
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 100, 576, *range(1380, 1480, 13), 1472, 1473, 4000]
ECHO_SIZES = [0, 1, 56, 1600]


def _links() -> list[Link]:
    """Every shape, and every suite in two disjoint shapes; window sizes alternate."""
    links = []
    for number, suite in enumerate(SUITES.values()):
        for shape in (number, len(SHAPES) - 1 - number):
            mode, encapsulation, version, esn = SHAPES[shape]
            links.append(
                Link(
                    len(links) + 1,
                    mode,
                    encapsulation,
                    version,
                    suite,
                    esn,
                    kernel_window=WINDOWS[len(links) % 5],
                    replay_window=OUR_WINDOWS[number % 5],
                )
            )
    return links


LINKS = [with_keys(link) for link in _links()]
PROTOCOLS = 3


def traffic(protocol: str, number: int) -> Callable[[Function], Function]:
    """Mark a test of a protocol, one of PROTOCOLS, to run over every link in both directions.

    In every run a link carries one protocol in each direction, on one engine. Of the two links of a
    suite either engine has one, and the two directions of a suite have different protocols.
    """

    def chosen(params: Mapping[str, Any]) -> bool:
        suite, second = divmod(params["link"].number - 1, 2)
        # By parity alone one engine would have the tunnels, or the links with ESN.
        engine = ENGINES[(second + (suite % 3 == 0)) % len(ENGINES)]
        return (suite + params["sender"]) % PROTOCOLS == number and params["peers"] == engine

    def mark(test: Function) -> Function:
        for one in (
            pytest.mark.parametrize("sender", [0, 1], ids=["from-esp-gw", "from-the-kernel"]),
            pytest.mark.parametrize("link", LINKS, ids=str),
            pytest.mark.protocol(protocol),
            every_run(chosen),
        ):
            test = one(test)
        return test

    return mark


@pytest.fixture(scope="module", params=ENGINES)
def peers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peers]:
    def prepare(gateway: LabGateway) -> None:
        write_configuration(gateway.config, LINKS, {**gateway.settings, "engine": request.param})

    with kernel_peers(tmp_path_factory.mktemp("gateway"), LINKS, prepare) as peers:
        yield peers


@pytest.fixture(autouse=True)
def _tried(request: pytest.FixtureRequest, record_property: RecordProperty) -> None:
    """Record the trial of a test that takes a `link`, for docs/interop.md."""
    if "link" not in request.fixturenames:
        return
    protocol = request.node.get_closest_marker("protocol").args[0]
    sender = ["esp_gw to the kernel", "the kernel to esp_gw"][request.getfixturevalue("sender")]
    record_trial(
        record_property,
        peer=f"ESP of Linux {platform.release()}",
        configuration=request.getfixturevalue("link").words,
        tried=f"{protocol}, from {sender}",
        engine=request.node.callspec.params["peers"],
    )


@traffic("UDP of 1 to 4000 bytes", 0)
def test_datagrams_of_every_size_arrive_as_they_were_sent(
    peers: Peers, link: Link, sender: int
) -> None:
    for version in link.inner_versions:
        addresses = link.inner(sender, version), link.inner(1 - sender, version)
        with (
            peers.socket(sender, addresses[0], socket.SOCK_DGRAM) as ours,
            peers.socket(1 - sender, addresses[1], socket.SOCK_DGRAM) as theirs,
        ):
            ours.connect(theirs.getsockname())
            for size in sizes(link, SIZES):
                payload = bytes((size + at) & 0xFF for at in range(size))
                ours.send(payload)
                assert peers.receive(theirs, f"{size} bytes, IPv{version}") == payload


@traffic("a TCP stream", 1)
def test_a_stream_arrives_whole(peers: Peers, link: Link, sender: int) -> None:
    data = bytes(range(256)) * 256
    for version in link.inner_versions:
        addresses = link.inner(sender, version), link.inner(1 - sender, version)
        with (
            peers.socket(1 - sender, addresses[1], socket.SOCK_STREAM) as listener,
            peers.socket(sender, addresses[0], socket.SOCK_STREAM) as client,
        ):
            listener.listen()
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                server.settimeout(TIMEOUT)
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                received = b""
                while piece := server.recv(65536):
                    received += piece
            assert received == data


@traffic("pings of 0 to 1600 bytes", 2)
def test_echo_requests_are_answered(peers: Peers, link: Link, sender: int) -> None:
    for version in link.inner_versions:
        source, target = link.inner(sender, version), link.inner(1 - sender, version)
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        request, reply = (8, 0) if version == 4 else (128, 129)
        with peers.socket(sender, source, socket.SOCK_RAW, protocol) as sock:
            for seq, size in enumerate(sizes(link, ECHO_SIZES)):
                sock.sendto(message(request, link.number, seq, size), (target, 0))
                answer = b""
                while answer[:1] != bytes([reply]) or answer[4:8] != _ident(link.number, seq):
                    packet = peers.receive(sock, f"the answer to {size} bytes, IPv{version}")
                    # A raw IPv4 socket includes the IP header.
                    answer = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
                assert answer[8:] == bytes(size)


def _ident(ident: int, seq: int) -> bytes:
    return struct.pack("!HH", ident, seq)


def test_neither_side_lost_or_refused_a_packet(peers: Peers) -> None:
    assert peers.refused() == {}
    states = peers.kernel.ip("-s", "xfrm", "state")
    assert states.count("replay-window 0 replay 0 failed 0") == 2 * len(LINKS), states
