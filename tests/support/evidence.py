"""Results of tests with other implementations, from which docs/interop.md is generated."""

from __future__ import annotations

from collections.abc import Callable

RecordProperty = Callable[[str, object], None]


def record_trial(
    record_property: RecordProperty, *, peer: str, configuration: str, tried: str, engine: str
) -> None:
    """Attach a trial to the test's report; fields as in lab.interop.Trial."""
    record_property("peer", peer)
    record_property("configuration", configuration)
    record_property("tried", tried)
    record_property("engine", engine)
