"""The status text: what runs, and what is wrong, on one line."""

from __future__ import annotations

import pytest

from esp_gw.daemon.status import status_text


@pytest.mark.parametrize(
    ("sas", "faults", "text"),
    [
        (0, [], "0 SAs, engine native"),
        (1, [], "1 SA, engine native"),
        (2, ["esp0 is down"], "2 SAs, engine native; esp0 is down"),
        (
            2,
            ["esp0 is down", "b", "c"],
            "2 SAs, engine native; esp0 is down (and 2 more, see 'esp-gw status')",
        ),
    ],
)
def test_the_first_fault_is_told_in_full_and_the_others_are_counted(
    sas: int, faults: list[str], text: str
) -> None:
    assert status_text(sas, "native", faults) == text
