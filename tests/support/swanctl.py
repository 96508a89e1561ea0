"""Files in strongSwan's syntax (strongswan.conf(5)), read as charon reads them."""

from __future__ import annotations

from typing import Any


def read_settings(text: str) -> dict[str, Any]:
    """Return sections as dictionaries. Raises ValueError for what is neither section nor value."""
    root: dict[str, Any] = {}
    open_ones = [root]
    for line in text.splitlines():
        content = line.partition("#")[0].strip()
        if not content:
            continue
        if content == "}":
            open_ones.pop()
        elif content.endswith("{"):
            name = content.removesuffix("{").strip()
            if set(name) & set(".:,=# \t"):
                raise ValueError(f"no name of a section: {name}")
            open_ones.append(open_ones[-1].setdefault(name, {}))
        else:
            name, equals, value = content.partition("=")
            if not equals or not open_ones[1:]:
                raise ValueError(f"neither section nor value: {line}")
            open_ones[-1][name.strip()] = value.strip()
    if len(open_ones) != 1:
        raise ValueError("a section has no end")
    return root
