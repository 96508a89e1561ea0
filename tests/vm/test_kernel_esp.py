"""The kernel's own ESP as the peer: the tests of inside/test_kernel_esp.py in one machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_esp_gw_and_the_kernel_understand_each_other(guest: Guest) -> None:
    result = guest.pytest("test_kernel_esp")
    assert result.status == 0, result.tail
