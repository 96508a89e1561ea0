"""IKE's children in the output of `esp-gw status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esp_gw.cli import output


def print_children(children: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each child, nothing without one."""
    if not children:
        return
    output.print_table(
        ("CHILD", "PEER", "REMOTE", "STATE", "AGE", "NEXT REKEY"),
        [
            (
                child["name"],
                child["peer"],
                output.remote(child),
                child["state"],
                "" if child["age_s"] is None else output.span(child["age_s"]),
                _rekey(child["rekey_s"]),
            )
            for child in children
        ],
        none="",
    )


def _rekey(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"in {output.span(seconds)}" if seconds else "due"
