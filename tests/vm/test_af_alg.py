"""AF_ALG: runs inside/test_af_alg.py in the shared machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_af_alg_agrees_with_openssl_and_may_be_withdrawn(guest: Guest) -> None:
    result = guest.pytest("test_af_alg")
    assert result.status == 0, result.tail
