"""A kernel that has AF_ALG: the tests of inside/test_af_alg.py in one machine."""

from __future__ import annotations

from tests.support.guest import Guest


def test_af_alg_does_what_openssl_does_and_may_go(guest: Guest) -> None:
    result = guest.pytest("test_af_alg")
    assert result.status == 0, result.tail
