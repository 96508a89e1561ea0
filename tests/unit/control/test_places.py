"""The places of the control socket against a plain statement of what every user is owed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.control.places import (
    MAX_CONNECTIONS,
    MAX_OF_A_USER,
    ROOT_PLACES,
    Place,
    Places,
)
from esp_gw.errors import ControlError

ROOT, ANN, BOB = 0, 1000, 1001


def fill(places: Places, uid: int, count: int) -> list[Place]:
    return [places.take(uid)[0] for _ in range(count)]


def test_a_user_who_takes_more_than_his_places_loses_the_one_that_waited_longest() -> None:
    places = Places()
    anns = fill(places, ANN, MAX_OF_A_USER)
    fill(places, BOB, 1)
    places.begin(anns[0])
    places.begin(anns[1])
    places.wait(anns[1])
    assert [places.take(ANN)[1] for _ in range(2)] == anns[2:4]


def test_while_all_requests_of_a_user_are_carried_out_he_alone_gets_no_place() -> None:
    places = Places()
    for place in fill(places, ANN, MAX_OF_A_USER):
        places.begin(place)
    with pytest.raises(ControlError, match="too many connections"):
        places.take(ANN)
    assert places.take(BOB)[1] is None
    assert places.take(ROOT)[1] is None


def test_users_who_fill_all_places_but_roots_give_way_to_root_and_to_another_user() -> None:
    places = Places()
    for uid in range(ANN, ANN + (MAX_CONNECTIONS - ROOT_PLACES) // MAX_OF_A_USER):
        for place in fill(places, uid, MAX_OF_A_USER):
            places.begin(place)
    # All of them are busy: root alone still gets in.
    with pytest.raises(ControlError, match="too many connections"):
        places.take(2000)
    kept = fill(places, ROOT, ROOT_PLACES)
    assert len(kept) == ROOT_PLACES


def test_root_may_fill_all_places_and_gives_up_those_beyond_its_own() -> None:
    places = Places()
    roots = fill(places, ROOT, MAX_CONNECTIONS)
    assert places.take(ANN)[1] is roots[0]
    assert places.take(ROOT)[1] is roots[1]


def test_a_place_that_was_taken_away_may_still_be_given_back() -> None:
    places = Places()
    (place, *_) = fill(places, ANN, MAX_OF_A_USER)
    assert places.take(ANN)[1] is place
    places.free(place)
    fill(places, ROOT, MAX_CONNECTIONS - MAX_OF_A_USER)
    assert places.take(ROOT)[1] is not None


def test_without_any_connection_none_is_taken_away() -> None:
    places = Places()
    assert places.take_longest() is None
    (place,) = fill(places, ANN, 1)
    places.begin(place)
    assert places.take_longest() is None
    places.wait(place)
    assert places.take_longest() is place


Steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "begin", "wait", "free"]),
        st.integers(0, 6),
        st.integers(0, MAX_CONNECTIONS),
    ),
    max_size=400,
)


@given(Steps)
def test_whatever_users_do_the_limits_hold_and_only_those_who_wait_lose_a_place(
    steps: list[tuple[str, int, int]],
) -> None:
    places = Places()
    held: dict[Place, bool] = {}
    for what, uid, which in steps:
        if what == "take":
            have = Counter(place.uid for place in held)
            ordinary = sum(have.values()) - have[ROOT]
            try:
                place, former = places.take(uid)
            except ControlError:
                # Root is refused only by connections that are all busy; a user also by his own.
                full = len(held) >= MAX_CONNECTIONS
                mine = uid != ROOT and have[uid] >= MAX_OF_A_USER
                assert full or mine or ordinary >= MAX_CONNECTIONS - ROOT_PLACES
                continue
            if former is not None:
                assert held.pop(former), "a busy connection lost its place"
                assert uid == ROOT or former.uid != ROOT or have[ROOT] > ROOT_PLACES
            held[place] = True
        elif held:
            place = list(held)[which % len(held)]
            if what == "free":
                places.free(place)
                del held[place]
            else:
                getattr(places, what)(place)
                held[place] = what == "wait"
        have = Counter(place.uid for place in held)
        assert sum(have.values()) <= MAX_CONNECTIONS
        assert sum(have.values()) - have[ROOT] <= MAX_CONNECTIONS - ROOT_PLACES
        assert all(count <= MAX_OF_A_USER for uid, count in have.items() if uid != ROOT)
