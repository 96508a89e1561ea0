"""The routing tables in which a killed run may have left routes: a small file beside the ledger.

Guard routes outlive the daemon on purpose, and only this file records whose they are: those of a
dead neighbour must stay in place.
"""

from __future__ import annotations

import json
from pathlib import Path

from esp_gw import files
from esp_gw.logs import log

TABLES_NAME = "tables.json"


class OwnedTables:
    """The tables used by earlier runs with one state directory, until a start replaces them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> frozenset[int]:
        """Return the tables; none if the file is missing or damaged."""
        try:
            values = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return frozenset()
        if not isinstance(values, list):
            return frozenset()
        return frozenset(value for value in values if type(value) is int and value > 0)

    def write(self, tables: frozenset[int]) -> None:
        """Record the tables; on failure log it, and a later run doesn't find its leftovers."""
        if tables == self.read():
            return
        try:
            files.replace(self._path, json.dumps(sorted(tables)).encode())
        except OSError as error:
            reason = error.strerror or str(error)
            log.warning("can't record the routing table", path=str(self._path), reason=reason)
