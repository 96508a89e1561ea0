"""The kernel's answers on routes, on the loopback of whatever machine this is."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from esp_gw.network.flow import Flow
from esp_gw.network.messages import MessageSocket
from esp_gw.network.route_lookup import way_of, way_to


@pytest.fixture
def messages() -> Iterator[MessageSocket]:
    with contextlib.closing(MessageSocket()) as opened:
        yield opened


def test_an_address_of_this_host_is_local(messages: MessageSocket) -> None:
    found = way_to(messages, ip_address("127.0.0.5"))
    assert (found.is_local, found.device, found.error) == (True, "lo", 0)


def test_ports_and_protocols_that_a_lookup_does_not_take_are_left_out(
    messages: MessageSocket,
) -> None:
    here, there = ip_address("127.0.0.1"), ip_address("127.0.0.2")
    for protocol, ports in (
        (6, (1, 2)),
        (17, (None, 53)),
        (1, ()),
        (58, ()),
        (47, ()),
        (132, (9, 9)),
    ):
        assert way_of(messages, Flow(here, there, protocol, *ports)).is_local


def test_an_interface_that_is_not_there_is_a_refusal(messages: MessageSocket) -> None:
    here = ip_address("127.0.0.1")
    assert way_of(messages, Flow(here, here), "none0").error == errno.ENODEV


def test_a_source_of_another_host_is_refused(messages: MessageSocket) -> None:
    flow = Flow(ip_address("192.0.2.77"), ip_address("127.0.0.1"))
    assert way_of(messages, flow).error != 0
