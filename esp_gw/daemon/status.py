"""The status text of the service, for `systemctl status` (sd_notify(3), STATUS=)."""

from __future__ import annotations

from collections.abc import Sequence


def status_text(sas: int, engine: str, faults: Sequence[str]) -> str:
    """Return on one line what runs, and what is wrong: the first fault, and how many more."""
    text = f"{sas} {'SA' if sas == 1 else 'SAs'}, engine {engine}"
    if not faults:
        return text
    first, *others = faults
    more = f" (and {len(others)} more, see 'esp-gw status')" if others else ""
    return f"{text}; {first}{more}"
