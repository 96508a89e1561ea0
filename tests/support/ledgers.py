"""Keys, machines, and ways to reopen, age or damage a ledger, for its tests."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from esp_gw.ledger import file as ledger_file
from esp_gw.ledger.identity import MachineIdentity, machine_identity
from esp_gw.ledger.ledger import Ledger
from esp_gw.model import KeyMaterial

ESN = 2**64 - 1
NO_ESN = 2**32 - 1


def machine(name: str) -> MachineIdentity:
    """A machine without serial number and product UUID."""
    return MachineIdentity(name * 64, joint=name * 64)


MACHINE = machine("a")


def key(number: int) -> KeyMaterial:
    return KeyMaterial(bytes([0xFF - number]) * 32, bytes([0x80 + number]) * 4)


def reopened(ledger: Ledger, path: Path) -> Ledger:
    ledger.close()
    return Ledger.open(path, MACHINE)


def make_garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_other_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE notes (text)")
    path.chmod(0o600)


def make_rollback_journal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")


class FakeHost:
    """The files below a root that tell a machine from others; none of them exists at first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine_id = root / "etc/machine-id"
        self.serial = root / "sys/firmware/devicetree/base/serial-number"
        self.uuid = root / "sys/class/dmi/id/product_uuid"
        for path in (self.machine_id, self.serial, self.uuid):
            path.parent.mkdir(parents=True)

    def become(self, machine_id: str = "", serial: str = "", uuid: str = "") -> MachineIdentity:
        """Set the components of the machine; an empty one is absent."""
        values = {
            self.machine_id: f"{machine_id}\n",
            self.serial: f"{serial}\0",
            self.uuid: f"{uuid}\n",
        }
        for path, value in values.items():
            path.unlink(missing_ok=True)
            if value.strip("\0\n"):
                path.write_text(value)
        return machine_identity(root=self.root)


def make_schema_1(path: Path, record: str) -> None:
    """Turn a ledger into one of schema 1, whose record is one hash of id and serial number."""
    with closing(ledger_file.connect(path)) as connection:
        contents = replace(ledger_file.read(path, connection), machine=record)
        ledger_file.store_machine(connection, contents)
        connection.execute("PRAGMA user_version = 1").close()
