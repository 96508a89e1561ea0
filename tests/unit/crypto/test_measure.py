"""Measurement of suites: in turn, the best of several rounds, within a time limit."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from esp_gw.crypto import measure, measure_python
from esp_gw.crypto.aead import Aead, Buffer
from esp_gw.crypto.measure import BRIEF, Cell, Effort, Sealer, measure_cells
from esp_gw.crypto.openssl import make_aead
from esp_gw.model import SUITES, KeyMaterial, Suite

FAST: Cell = ("openssl", "aes256gcm16", 64)
SLOW: Cell = ("openssl", "chacha20poly1305", 1400)
GONE: Cell = ("af-alg", "aes256gcm16", 64)
EFFORT = Effort(rounds=5, sample=0.001, limit=60)


class Machine:
    """A machine with a steady pace, apart from moments that are ten times as slow."""

    def __init__(self, slow_calls: tuple[int, ...] = ()) -> None:
        self.calls: list[tuple[Cell, int]] = []
        self.slow_calls = slow_calls

    def __call__(self, provider: str, suite: str, size: int, packets: int) -> float:
        self.calls.append(((provider, suite, size), packets))
        pace = 10 if len(self.calls) in self.slow_calls else 1
        return pace * (500 if suite == "aes256gcm16" else 20_000)


def test_the_cells_are_measured_in_turn_and_slow_moments_are_ignored() -> None:
    machine = Machine(slow_calls=(3, 5, 7, 8, 9))
    found = measure_cells(machine, [FAST, SLOW], EFFORT)
    assert [cell for cell, _ in machine.calls] == [FAST, SLOW] * 6
    assert found.ns == {FAST: 500, SLOW: 20_000}
    assert found.missing == {}


def test_a_sample_has_its_duration_whatever_a_packet_takes() -> None:
    machine = Machine()
    measure_cells(machine, [FAST, SLOW], EFFORT)
    assert machine.calls[:2] == [(FAST, 8), (SLOW, 8)]
    assert set(machine.calls[2:]) == {(FAST, 2_000), (SLOW, 50)}
    machine = Machine()
    measure_cells(machine, [FAST, SLOW], replace(EFFORT, sample=10**-9))
    assert {packets for _, packets in machine.calls} == {8}


def test_no_round_begins_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    clock = SimpleNamespace(monotonic=lambda: len(machine.calls) * 14.0)
    monkeypatch.setattr(measure, "time", clock)
    found = measure_cells(machine, [FAST], EFFORT)
    assert len(machine.calls) == 5
    assert found.ns == {FAST: 500}


def test_there_are_at_least_three_rounds_after_the_uncounted_first_one() -> None:
    for slow_calls in ((3, 4), (4, 5), (5, 6)):
        machine = Machine(slow_calls)
        found = measure_cells(machine, [FAST, SLOW], replace(EFFORT, limit=-1))
        assert len(machine.calls) == 8
        assert found.ns == {FAST: 500, SLOW: 20_000}
    fast_once = iter((1.0, *[500.0] * 5))
    assert measure_cells(lambda *_: next(fast_once), [FAST], EFFORT).ns == {FAST: 500}


@pytest.mark.parametrize("first_failure", [1, 4])
def test_a_provider_that_is_missing_or_fails_is_reported_with_its_reason(
    first_failure: int,
) -> None:
    machine, asked = Machine(), Counter[Cell]()

    def sealing(*arguments: object) -> float:
        cell: Cell = arguments[:3]  # type: ignore[assignment]
        asked[cell] += 1
        if cell == GONE and asked[cell] >= first_failure:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return machine(*arguments)  # type: ignore[arg-type]

    found = measure_cells(sealing, [FAST, GONE], EFFORT)
    assert found.ns == {FAST: 500}
    assert found.missing == {("af-alg", "aes256gcm16"): "Operation not permitted"}
    assert asked == {FAST: 6, GONE: first_failure}


def test_the_native_engine_uses_aws_lc_if_aws_lc_has_the_suite() -> None:
    native, python = Sealer(native=True), Sealer(native=False)
    assert native.provider_of("aes256gcm16") == "aws-lc"
    assert native.provider_of("aes256gcm8") == "openssl"
    assert replace(native, provider="openssl").provider_of("aes256gcm16") == "openssl"
    in_kernel = replace(native, in_kernel=frozenset({"aes256gcm16"}))
    assert in_kernel.provider_of("aes256gcm16") == "af-alg"
    assert in_kernel.provider_of("chacha20poly1305") == "aws-lc"
    assert replace(python, provider="aws-lc").provider_of("aes256gcm16") == "openssl"


def test_every_suite_is_measured_at_each_size_as_python_seals_it() -> None:
    found = Sealer(native=False).figures(SUITES, replace(BRIEF, rounds=1))
    assert found.keys() == SUITES.keys()
    assert all(ns > 0 for figures in found.values() for ns in figures.values())


def test_no_nonce_is_used_twice_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[bytes] = []

    def counted(suite: Suite, keymat: KeyMaterial) -> Aead:
        aead = make_aead(suite, keymat)

        def seal_into(nonce: bytes, text: Buffer, aad: bytes, out: memoryview) -> None:
            nonces.append(nonce)
            aead.seal_into(nonce, text, aad, out)

        return replace(aead, seal_into=seal_into)

    monkeypatch.setitem(measure_python._PROVIDERS, "openssl", counted)
    measure_python.measure_python("openssl", "aes256gcm16", 64, 100)
    assert len(set(nonces)) == len(nonces) == 101


def test_a_suite_that_openssl_lacks_is_missing_and_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An example is FIPS mode."""

    def make(suite: Suite, keymat: KeyMaterial) -> Aead:
        if suite.cipher == "chacha20-poly1305":
            raise UnsupportedAlgorithm("ChaCha20Poly1305 is not supported by this OpenSSL")
        return make_aead(suite, keymat)

    monkeypatch.setitem(measure_python._PROVIDERS, "openssl", make)
    found = Sealer(native=False).figures(["aes256gcm16", "chacha20poly1305"], BRIEF)
    assert list(found) == ["aes256gcm16"]
    with pytest.raises(ValueError, match="has no chacha20poly1305"):
        measure_python.measure_python("openssl", "chacha20poly1305", 64, 1)
