"""Identity of the machine: its id and its board."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.errors import LedgerError
from esp_gw.ledger.identity import machine_identity


def test_the_machine_is_its_id_and_its_board(tmp_path: Path) -> None:
    machine_id, serial = tmp_path / "machine-id", tmp_path / "serial-number"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    without = machine_identity(machine_id, serial)
    serial.write_bytes(b"10000000abcdef01\0")
    board = machine_identity(machine_id, serial)
    serial.write_bytes(b"10000000abcdef02\0")
    clone = machine_identity(machine_id, serial)
    assert len({without, board, clone}) == 3
    assert machine_identity(machine_id, serial) == clone
    assert all(len(bytes.fromhex(name)) == 32 for name in (without, board, clone))
    assert "0123456789abcdef" not in without + board
    machine_id.write_text("1123456789abcdef0123456789abcdef\n")
    assert machine_identity(machine_id, serial) != clone


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n", "0" * 32, "0123", None])
def test_a_missing_machine_id_is_reported_with_a_remedy(tmp_path: Path, text: str | None) -> None:
    machine_id = tmp_path / "machine-id"
    if text is not None:
        machine_id.write_text(text)
    with pytest.raises(LedgerError, match="systemd-machine-id-setup"):
        machine_identity(machine_id, tmp_path / "none")


def test_an_unreadable_identity_is_an_error_not_another_machine(tmp_path: Path) -> None:
    machine_id, serial = tmp_path / "machine-id", tmp_path / "serial-number"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    serial.mkdir()
    with pytest.raises(LedgerError, match="serial number"):
        machine_identity(machine_id, serial)
    with pytest.raises(LedgerError, match="can't read the machine id"):
        machine_identity(serial, machine_id)
