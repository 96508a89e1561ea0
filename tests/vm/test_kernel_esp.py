"""The kernel's own ESP as the peer: runs inside/test_kernel_esp.py in the shared machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_esp_gw_and_the_kernel_interoperate(guest: Guest) -> None:
    result = guest.pytest("test_kernel_esp")
    assert result.status == 0, result.tail
