"""Results of tests with other implementations, from which docs/interop.md is generated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.engines import ENGINES

RecordProperty = Callable[[str, object], None]


def record_trial(
    record_property: RecordProperty, *, peer: str, configuration: str, tried: str, engine: str
) -> None:
    """Attach a trial to the test's report; fields as in lab.interop.Trial."""
    record_property("peer", peer)
    record_property("configuration", configuration)
    record_property("tried", tried)
    record_property("engine", engine)


def trial(peer: Callable[[], str], configuration: str, tried: str) -> pytest.MarkDecorator:
    """Mark a test whose result is a trial; names of its parameters in braces are filled in."""
    return pytest.mark.trial(peer=peer, configuration=configuration, tried=tried)


def record_marked(item: pytest.Function, record_property: RecordProperty) -> None:
    """Attach the trial of a test's mark, if it has one.

    Its engine is among the test's parameters, or that of its fixture, or a gateway's default.
    """
    mark = item.get_closest_marker("trial")
    if mark is None:
        return
    params = item.callspec.params if hasattr(item, "callspec") else {}
    default = ENGINES[0 if "make_pair_of_one_engine" in item.fixturenames else -1]
    record_trial(
        record_property,
        peer=mark.kwargs["peer"](),
        configuration=mark.kwargs["configuration"].format(**params),
        tried=mark.kwargs["tried"].format(**params),
        engine=next((value for value in params.values() if value in ENGINES), default),
    )
