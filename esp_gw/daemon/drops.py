"""Dropped packets explained: counters of the tunnels and of no tunnel, with causes and evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from esp_gw.errors import ControlError
from esp_gw.health.reasons import MEANINGS, Meaning
from esp_gw.model import DropReason

Samples = Mapping[str, str]
"""The last sample of each reason, in words."""


def explain_drops(
    tunnels: Iterable[Mapping[str, Any]],
    totals: Mapping[str, int],
    seen: Callable[[str | None], Samples],
    only: object = None,
) -> dict[str, object]:
    """Return the drops of each tunnel that has some, and those of no tunnel.

    `tunnels` are as listed, `totals` all drops by reason. `seen` returns the samples of a tunnel,
    for None those that no SA counts. Raises ControlError if there is no tunnel `only`.
    """
    listed = list(tunnels)
    if only is not None:
        if only not in [each["name"] for each in listed]:
            raise ControlError(
                "NotFound",
                f"there is no tunnel {only}",
                hint="'esp-gw tunnel list' shows the existing ones",
            )
        listed = [each for each in listed if each["name"] == only]
    others = Counter(totals)
    for each in listed:
        others.subtract(each["drops"])
    found = [
        {
            "tunnel": each["name"],
            "state": each["state"],
            "causes": list(each["causes"]),
            "drops": _drops(each["drops"], seen(each["name"])),
        }
        for each in listed
    ]
    return {
        "tunnels": [each for each in found if each["drops"] or each["causes"]],
        "others": _drops(others, seen(None)) if only is None else [],
    }


def _drops(counts: Mapping[str, int], samples: Samples) -> list[dict[str, object]]:
    """Return what was dropped, the most frequent reason first; keepalives are no loss."""
    lost = [
        (reason, count)
        for reason, count in counts.items()
        if count > 0 and reason != DropReason.DUMMY
    ]
    return [
        _drop(reason, count, samples.get(reason))
        for reason, count in sorted(lost, key=lambda each: -each[1])
    ]


def _drop(reason: str, count: int, sample: str | None) -> dict[str, object]:
    meaning = MEANINGS.get(reason, Meaning("", ""))
    return {
        "reason": reason,
        "count": count,
        "packets": meaning.packets,
        "cause": meaning.cause,
        "todo": meaning.todo,
        "seen": sample,
    }
