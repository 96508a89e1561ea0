"""Reasons of the operating system in words for a person."""

from __future__ import annotations

import pytest

from esp_gw.engine.refusals import os_reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, None),
        ("Permission denied (os error 13)", "EACCES: Permission denied"),
        ("Cannot allocate memory (os error 12)", "ENOMEM: Cannot allocate memory"),
        ("Unknown error 9999 (os error 9999)", "9999: Unknown error 9999"),
        ("a list of more than 400 SPIs", "a list of more than 400 SPIs"),
    ],
)
def test_a_reason_has_the_name_of_its_error(text: str | None, reason: str | None) -> None:
    assert os_reason(text) == reason
