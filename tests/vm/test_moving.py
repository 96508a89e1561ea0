"""Import from and export to the kernel: runs inside/test_moving.py in the shared machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_a_gateway_of_the_kernel_moves_while_its_peer_stays(guest: Guest) -> None:
    result = guest.pytest("test_moving")
    assert result.status == 0, result.tail
