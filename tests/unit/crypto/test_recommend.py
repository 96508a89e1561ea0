"""Recommended suites, from round figures of the order of magnitude of real boards."""

from __future__ import annotations

import pytest

from esp_gw.crypto.recommend import SIZES, Figures, peers, reason, recommended, times_as_long

AES, CHACHA = "aes256gcm16", "chacha20poly1305"
ARM = "ARMv8 Crypto Extensions"


def figures(*ns: float) -> Figures:
    """Nanoseconds by size, beginning with the smallest size."""
    return dict(zip(SIZES, ns, strict=True))


# Software AES at some 25 and 45 MB/s, ChaCha20 with NEON at 75 and 220: no AES instructions.
PI_3 = {AES: figures(4_900, 25_000, 58_000), CHACHA: figures(2_300, 8_600, 19_500)}
PI_4 = {AES: figures(2_600, 13_200, 30_500), CHACHA: figures(1_100, 3_000, 6_400)}
# With the ARMv8 Crypto Extensions.
PI_5 = {AES: figures(260, 480, 900), CHACHA: figures(560, 1_500, 3_200)}


@pytest.mark.parametrize(
    ("board", "suite"), [(PI_3, CHACHA), (PI_4, CHACHA), (PI_5, AES)], ids=["pi3", "pi4", "pi5"]
)
def test_a_board_without_aes_instructions_gets_chacha20_and_others_the_default(
    board: dict[str, Figures], suite: str
) -> None:
    assert recommended(board) == suite


def test_a_small_lead_is_not_worth_leaving_the_default() -> None:
    aes = figures(100, 500, 1400)
    # 2000 against 1400 and 1300: below and above one and a half times as long.
    assert recommended({AES: aes, CHACHA: figures(100, 300, 1000)}) == AES
    assert recommended({AES: aes, CHACHA: figures(100, 300, 900)}) == CHACHA


def test_large_packets_weigh_more_than_small_ones() -> None:
    """With one packet of each size, the overhead of a Python call on a small one is minor."""
    assert times_as_long(figures(900, 1_000, 4_100), figures(1_000, 1_000, 1_000)) == 2


def test_an_unavailable_suite_is_not_recommended() -> None:
    assert recommended({AES: PI_4[AES]}) == AES
    assert recommended({CHACHA: PI_5[CHACHA]}) == CHACHA
    assert recommended({}) == AES
    assert reason({AES: PI_4[AES]}, "none") == f"This machine has no {CHACHA}."


def test_the_reason_names_the_factor_and_the_instructions() -> None:
    assert reason(PI_4, "none") == f"It is 4.4 times as fast as {AES} on this machine."
    assert reason(PI_5, ARM) == (
        f"It is 3.2 times as fast as {CHACHA} on this machine, which has AES instructions ({ARM})."
    )
    equal = {AES: PI_5[AES], CHACHA: PI_5[AES]}
    assert reason(equal, "none") == f"It is about as fast as {CHACHA} on this machine."


def test_the_right_suite_also_depends_on_the_peer() -> None:
    assert "every peer" in peers(CHACHA)
    assert CHACHA in peers(AES)
