"""The choice of a suite, for arbitrary figures of a machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esp_gw.crypto.recommend import CHOICE, SIZES, Figures, recommended, times_as_long

NS = st.floats(10, 1e7)
FIGURES = st.fixed_dictionaries(dict.fromkeys(SIZES, NS))
BOTH = st.fixed_dictionaries(dict.fromkeys(CHOICE, FIGURES))
NOISE = st.fixed_dictionaries(
    {name: st.tuples(*[st.floats(0.9, 1.1)] * len(SIZES)) for name in CHOICE}
)


@given(BOTH)
def test_a_recommendation_other_than_the_default_is_faster_by_half(
    figures: dict[str, Figures],
) -> None:
    default, other = CHOICE
    slower = times_as_long(figures[default], figures[other])
    assert recommended(figures) == (other if slower >= 1.5 else default)


@given(BOTH, NOISE)
def test_ten_percent_of_noise_does_not_change_a_clear_choice(
    figures: dict[str, Figures], noise: dict[str, tuple[float, ...]]
) -> None:
    measured = {
        name: {size: figures[name][size] * part for size, part in zip(SIZES, parts, strict=True)}
        for name, parts in noise.items()
    }
    slower = times_as_long(*(figures[name] for name in CHOICE))
    if slower < 1.5 * 0.9 / 1.1 or slower > 1.5 * 1.1 / 0.9:
        assert recommended(measured) == recommended(figures)
    if slower <= 1:
        assert recommended(measured) == CHOICE[0]


@given(BOTH, st.floats(0.01, 100))
def test_only_the_ratio_counts(figures: dict[str, Figures], pace: float) -> None:
    """A uniformly slower machine gets the same suite, except at the edge of the margin."""
    slower = times_as_long(*(figures[name] for name in CHOICE))
    if abs(slower - 1.5) > 1e-6:
        scaled = {
            name: {size: ns * pace for size, ns in times.items()} for name, times in figures.items()
        }
        assert recommended(scaled) == recommended(figures)
