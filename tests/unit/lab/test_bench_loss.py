"""The search for the highest rate under the loss limit, over simulated links."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab.bench.loss import Probe, search


class SimulatedLink:
    """A link that carries `capacity` packets per second; the sender manages `fastest`."""

    def __init__(self, capacity: float, fastest: float, under_overload: float = 1.0) -> None:
        self.capacity = capacity
        self.fastest = fastest
        self.under_overload = under_overload
        self.asked: list[float] = []

    def __call__(self, rate: float) -> Probe:
        self.asked.append(rate)
        sent = min(rate or self.fastest, self.fastest)
        if sent <= self.capacity:
            return Probe(sent, sent, 0.0, (50.0, 40.0))
        received = self.capacity * self.under_overload
        return Probe(sent, received, 1 - received / sent, (99.0, 99.0))


@pytest.mark.parametrize("capacity", [1_000, 30_000, 400_000])
@pytest.mark.parametrize("under_overload", [1.0, 0.4])
def test_a_search_ends_near_the_capacity_of_the_link(
    capacity: float, under_overload: float
) -> None:
    link = SimulatedLink(capacity, 1_000_000, under_overload)
    found = search(link, None, probes=12)
    assert found.best is not None
    assert 0.9 * capacity <= found.best.received <= capacity
    assert not found.is_senders_limit


@pytest.mark.parametrize("guess", [0.7, 0.98, 1.02, 1.4])
def test_a_search_from_a_guess_ends_near_the_capacity(guess: float) -> None:
    link = SimulatedLink(50_000, 1_000_000)
    found = search(link, guess * 50_000, probes=6)
    assert found.best is not None
    assert found.best.received >= 0.85 * 50_000
    assert link.asked[0] == guess * 50_000


@pytest.mark.parametrize("guess", [None, 60_000, 500_000])
def test_a_sender_that_cannot_overload_the_link_is_reported_as_the_limit(
    guess: float | None,
) -> None:
    found = search(SimulatedLink(900_000, 80_000), guess, probes=6)
    assert found.best is not None
    assert found.best.received == 80_000
    assert found.is_senders_limit


@pytest.mark.parametrize("probes", [2, 3, 5])
def test_a_search_keeps_to_its_number_of_runs(probes: int) -> None:
    link = SimulatedLink(50_000, 1_000_000)
    search(link, None, probes)
    assert len(link.asked) == probes


@pytest.mark.parametrize("guess", [None, 60_000])
def test_a_search_without_a_good_run_continues_a_little(guess: float | None) -> None:
    link = SimulatedLink(25_000, 1_000_000)
    found = search(link, guess, probes=1)
    assert found.best is not None
    assert 10_000 <= found.best.received <= 25_000


def test_a_search_eventually_gives_up() -> None:
    runs = [0]

    def probe(rate: float) -> Probe:
        runs[0] += 1
        return losing(0.5)(rate)

    assert search(probe, None, probes=1).best is None
    assert 1 < runs[0] < 10


def losing(loss: float) -> Callable[[float], Probe]:
    return lambda rate: Probe(rate or 100_000, (rate or 100_000) * (1 - loss), loss)


def test_a_link_that_always_loses_has_no_rate_and_the_next_search_starts_lower() -> None:
    found = search(losing(0.05), None, probes=3)
    assert found.best is None
    again = search(losing(0.05), found.next_guess, probes=3)
    assert again.next_guess < found.next_guess < 100_000


def test_exactly_one_percent_is_too_much() -> None:
    assert search(losing(0.01), None, probes=3).best is None
    assert search(losing(0.0099), None, probes=3).best is not None
