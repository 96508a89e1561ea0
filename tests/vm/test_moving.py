"""A gateway of the kernel becomes one of esp_gw, and a kernel its other end, in a machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_a_gateway_of_the_kernel_moves_while_its_peer_stays(guest: Guest) -> None:
    result = guest.pytest("test_moving")
    assert result.status == 0, result.tail
