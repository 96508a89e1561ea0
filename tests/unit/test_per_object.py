"""Values made of objects are made once, and go with them."""

from __future__ import annotations

from esp_gw.per_object import PerObject


class Thing:
    pass


def test_a_value_is_made_once_for_each_object_and_in_order() -> None:
    made: list[Thing] = []

    def make(thing: Thing) -> int:
        made.append(thing)
        return len(made)

    values = PerObject(make)
    first, second, third = Thing(), Thing(), Thing()
    assert values.of([first, second]) == [1, 2]
    assert values.of([third, first, second]) == [3, 1, 2]
    assert values.of([second, second]) == [2, 2]
    assert made == [first, second, third]


def test_nothing_is_kept_of_an_object_that_is_gone() -> None:
    values = PerObject(id)
    stays, goes = [Thing()], [Thing()]
    values.of([*stays, *goes])
    values.of(stays)
    assert list(values._known) == [id(stays[0])]
    assert values.of(goes) == [id(goes[0])]
    assert values.of([]) == []
    assert values._known == {}
