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
                child["connection"] if child["peer"] is None else child["peer"],
                _remote(child),
                _state(child),
                "" if child["age_s"] is None else output.span(child["age_s"]),
                _rekey(child["rekey_s"]),
            )
            for child in children
        ],
        none="",
    )


def _remote(child: Mapping[str, Any]) -> str:
    """Return where the peer is, or the networks that wait for it."""
    if child["remote"] is not None:
        return output.remote(child)
    return output.joined(child["remote_ts"])


def _state(child: Mapping[str, Any]) -> str:
    acquired = child.get("acquired_s")
    if acquired is None:
        return str(child["state"])
    return f"{child['state']}, asked for {output.span(acquired)} ago"


def _rekey(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"in {output.span(seconds)}" if seconds else "due"
