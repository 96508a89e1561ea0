"""Values made of objects, kept as long as the same objects are asked for.

A state of thousands of SAs differs from the last one by a few. What is made of each costs a lookup
by identity then, which calls no function of Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class PerObject(Generic[K, V]):
    """The values that `make` returns for objects that never change."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        # The object is kept: no other one can have its identity.
        self._known: dict[int, tuple[K, V]] = {}

    def of(self, objects: Collection[K]) -> list[V]:
        """Return the values of objects, in their order."""
        known = self._known
        for each in [each for each in objects if id(each) not in known]:
            known[id(each)] = (each, self._make(each))
        if len(known) > len(objects):
            # Nothing is kept of what is gone: it may be an SA with its key.
            self._known = known = {id(each): known[id(each)] for each in objects}
        return [known[id(each)][1] for each in objects]
