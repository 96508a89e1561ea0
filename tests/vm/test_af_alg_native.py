"""AF_ALG in the native engine: runs inside/test_af_alg_native.py in the shared machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_the_native_engine_keeps_its_keys_in_the_kernel(guest: Guest) -> None:
    result = guest.pytest("test_af_alg_native")
    assert result.status == 0, result.tail
