"""Hints about slow suites: when they are given, and when nothing is measured."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from esp_gw.crypto.advice import Advice
from esp_gw.crypto.recommend import SIZES, Figures
from esp_gw.model import SUITES, Encapsulation, Mode, Tunnel


def tunnel(suite: str, name: str = "office") -> Tunnel:
    here, there = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    return Tunnel(name, Mode.TUNNEL, Encapsulation.UDP, SUITES[suite], here, there, (), (), (), ())


class Board:
    """A processor on which AES-GCM takes a multiple of the time of ChaCha20-Poly1305."""

    def __init__(self, factor: float, lacks: str = "") -> None:
        self.factor, self.lacks = factor, lacks
        self.measured: list[list[str]] = []

    def __call__(self, suites: list[str], in_kernel: frozenset[str]) -> dict[str, Figures]:
        self.measured.append(
            [f"{suite} by AF_ALG" if suite in in_kernel else suite for suite in suites]
        )
        return {
            suite: dict.fromkeys(
                SIZES, 1000.0 if suite == "chacha20poly1305" else 1000 * self.factor
            )
            for suite in suites
            if suite != self.lacks
        }


def test_a_slow_suite_is_named_with_its_factor_and_a_remedy() -> None:
    (hint,) = Advice("none", Board(3.14)).hints([tunnel("aes256gcm16")])
    assert hint == (
        "tunnel office: the suite aes256gcm16 takes 3.1 times as long as chacha20poly1305 on this "
        "processor, which has no AES instructions; if the peer has chacha20poly1305 too, use it at "
        "both ends, with new keys"
    )


@pytest.mark.parametrize(("factor", "hints"), [(0.3, 0), (1, 0), (1.49, 0), (1.51, 1), (4, 1)])
def test_a_lead_within_noise_gives_no_hint(factor: float, hints: int) -> None:
    assert len(Advice("none", Board(factor)).hints([tunnel("aes256gcm16")])) == hints


def test_with_aes_instructions_nothing_is_measured_and_no_hint_is_given() -> None:
    board = Board(4)
    tunnels = [tunnel("aes256gcm16"), tunnel("chacha20poly1305")]
    assert Advice("AES-NI", board).hints(tunnels) == []
    assert board.measured == []


@pytest.mark.parametrize("suite", ["chacha20poly1305", "aes256gmac"])
def test_a_suite_without_a_faster_alternative_is_not_measured(suite: str) -> None:
    """ChaCha20-Poly1305 is the fast suite, and AES-GMAC is not chosen for its speed."""
    board = Board(4)
    assert Advice("none", board).hints([tunnel(suite)]) == []
    assert board.measured == []


@pytest.mark.parametrize("lacks", ["chacha20poly1305", "aes256gcm16"])
def test_a_suite_that_cannot_be_measured_gives_no_hint(lacks: str) -> None:
    assert Advice("none", Board(4, lacks)).hints([tunnel("aes256gcm16")]) == []


def test_a_suite_is_measured_once_for_all_calls_and_tunnels() -> None:
    board = Board(4)
    advice = Advice("none", board)
    many = [tunnel("aes256gcm16", f"t{number}") for number in range(5)]
    (hint,) = advice.hints(many)
    assert hint.startswith("tunnels t0, t1, t2 and 2 more: ")
    hints = advice.hints([*many[:2], tunnel("aes128gcm16", "new")])
    assert [hint.split(":")[0] for hint in hints] == ["tunnel new", "tunnels t0, t1"]
    assert board.measured == [
        ["aes256gcm16", "chacha20poly1305"],
        ["aes128gcm16", "chacha20poly1305"],
    ]
    assert advice.hints([]) == []


def test_a_suite_that_the_kernel_seals_is_measured_there() -> None:
    board = Board(4)
    advice = Advice("none", board)
    for in_kernel in (frozenset({"aes256gcm16"}), frozenset[str](), frozenset({"aes256gcm16"})):
        assert len(advice.hints([tunnel("aes256gcm16")], in_kernel)) == 1
    assert board.measured == [
        ["aes256gcm16 by AF_ALG", "chacha20poly1305"],
        ["aes256gcm16", "chacha20poly1305"],
    ]
