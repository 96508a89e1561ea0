"""The routing tables that a killed run may have left something in: a small file beside the ledger.

What guards a prefix outlives the daemon on purpose, and only this file says whose it was: what a
dead neighbour left must go on guarding.
"""

from __future__ import annotations

import json
from pathlib import Path

from esp_gw import files
from esp_gw.logs import log

TABLES_NAME = "tables.json"


class OwnedTables:
    """The tables that runs with one state directory have used, until a start has replaced them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> frozenset[int]:
        """Return the tables; none where the file is missing or damaged."""
        try:
            values = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return frozenset()
        if not isinstance(values, list):
            return frozenset()
        return frozenset(value for value in values if type(value) is int and value > 0)

    def write(self, tables: frozenset[int]) -> None:
        """Keep these; a disk that takes nothing costs a later run the leftovers, no more."""
        if tables == self.read():
            return
        try:
            files.replace(self._path, json.dumps(sorted(tables)).encode())
        except OSError as error:
            log.warning("the routing table can't be noted", path=str(self._path), reason=str(error))
