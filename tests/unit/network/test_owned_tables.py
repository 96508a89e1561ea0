"""The record of routing tables in which a killed run may have left routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.network.owned_tables import OwnedTables


def test_recorded_tables_are_read_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    assert OwnedTables(path).read() == frozenset()
    OwnedTables(path).write(frozenset({4500, 6000}))
    assert OwnedTables(path).read() == {4500, 6000}
    OwnedTables(path).write(frozenset({6000}))
    assert OwnedTables(path).read() == {6000}


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"{", b"5", b"[[]]", b'["4500"]', b"[true, 1.5, -1, null]", b"\xff"]
)
def test_a_damaged_file_names_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tables.json"
    path.write_bytes(content)
    assert OwnedTables(path).read() == frozenset()
    OwnedTables(path).write(frozenset({4500}))
    assert OwnedTables(path).read() == {4500}


def test_a_failed_write_does_not_stop_a_start(tmp_path: Path) -> None:
    OwnedTables(tmp_path / "missing" / "tables.json").write(frozenset({4500}))


def test_unchanged_tables_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    OwnedTables(path).write(frozenset({4500}))
    before = path.stat().st_ino
    OwnedTables(path).write(frozenset({4500}))
    assert path.stat().st_ino == before
