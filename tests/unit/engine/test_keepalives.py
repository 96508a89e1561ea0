"""The kind and the interval of an SA's keepalives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esp_gw.engine.keepalives import Rhythm, rhythm_of
from esp_gw.model import Direction, Encapsulation
from tests.support.builders import make_sa

UDP, RAW = Encapsulation.UDP, Encapsulation.NONE


@pytest.mark.parametrize(
    ("encapsulation", "keepalive", "liveness", "expected"),
    [
        (UDP, 0, 0, None),
        (UDP, 20, 0, Rhythm(20, authentic=False)),
        (UDP, 0, 10, Rhythm(10, authentic=True)),
        (UDP, 20, 10, Rhythm(10, authentic=True)),
        (UDP, 5, 10, Rhythm(5, authentic=True)),
        (RAW, 0, 0, None),
        (RAW, 5, 0, None),
        (RAW, 5, 10, Rhythm(10, authentic=True)),
    ],
)
def test_dummies_are_sent_by_the_smaller_interval_and_bytes_only_without_them(
    encapsulation: Encapsulation, keepalive: int, liveness: int, expected: Rhythm | None
) -> None:
    sa = replace(make_sa(encapsulation=encapsulation), keepalive=keepalive, liveness=liveness)
    assert rhythm_of(sa) == expected
    assert rhythm_of(replace(sa, direction=Direction.INBOUND)) is None
