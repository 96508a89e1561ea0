"""Identity of this machine: a ledger copied to another machine is not trusted there.

The components are the machine id, which a copied disk takes along, and two of the hardware: the
serial number of a board (Raspberry Pi) and the product UUID of DMI (PC, virtual machine). A ledger
holds a hash of each, so that a refusal can name the one that differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from esp_gw.errors import LedgerError

_ROOT = Path("/")
_MACHINE_ID_FILE = "etc/machine-id"
_BOARD_SERIAL_FILE = "sys/firmware/devicetree/base/serial-number"
_PRODUCT_UUID_FILE = "sys/class/dmi/id/product_uuid"

_MACHINE_ID, _BOARD_SERIAL, _PRODUCT_UUID = "machine-id", "board-serial", "product-uuid"
_WORDS = {
    _MACHINE_ID: "machine id",
    _BOARD_SERIAL: "serial number of the board",
    _PRODUCT_UUID: "product UUID",
}

_MACHINE_ID_FORM = re.compile(rb"[0-9a-f]{32}")
_HASH = "[0-9a-f]{64}"
_JOINT_RECORD = re.compile(_HASH)
_RECORD = re.compile(f"{_MACHINE_ID}={_HASH}( {_BOARD_SERIAL}={_HASH})?( {_PRODUCT_UUID}={_HASH})?")
RECORD_FORMS = {1: _JOINT_RECORD, 2: _RECORD, 3: _RECORD}
"""The form of a record, by the ledger's schema: one hash of all, or one of each component."""


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """A hash of each component, 64 hex digits; None for one that the machine does not have.

    `joint` is the hash of machine id and serial number together, the record of schema 1.
    `hides_uuid` is true if there is a product UUID that the gateway may not read.
    """

    machine_id: str
    board_serial: str | None = None
    product_uuid: str | None = None
    joint: str = ""
    hides_uuid: bool = False

    def record(self) -> str:
        """The identity as a ledger holds it, since schema 2."""
        return " ".join(f"{name}={value}" for name, value in self._components())

    def names(self) -> list[str]:
        """The names of the components, for messages."""
        return [_WORDS[name] for name, _ in self._components()]

    def mismatch(self, record: str) -> str | None:
        """Compare a ledger's record with this machine; in words, or None for this machine's ledger.

        A product UUID that the record does not hold yet is no mismatch. Raises LedgerError if the
        record holds one and the gateway may not read this machine's.
        """
        if _JOINT_RECORD.fullmatch(record):
            return None if record == self.joint else "other machine id or board"
        held = dict(part.split("=") for part in record.split(" "))
        here = dict(self._components())
        if _PRODUCT_UUID not in held:
            here.pop(_PRODUCT_UUID, None)
        elif self.hides_uuid:
            raise LedgerError(
                "the ledger is bound to the product UUID, which the gateway may not read",
                where=f"/{_PRODUCT_UUID_FILE}",
                hint="run 'systemd-tmpfiles --create esp-gw.conf' as root",
            )
        other = [name for name in _WORDS if held.get(name) != here.get(name)]
        same = [name for name in _WORDS if name in held and name not in other]
        return _in_words(same, other) if other else None

    def _components(self) -> Iterator[tuple[str, str]]:
        values = (self.machine_id, self.board_serial, self.product_uuid)
        for name, value in zip(_WORDS, values, strict=True):
            if value is not None:
                yield name, value


def machine_identity(state_dir: Path | None = None, *, root: Path = _ROOT) -> MachineIdentity:
    """Read the identity of this machine, as far as the gateway may.

    The gateway's user is the caller, or, for root, the owner of `state_dir`. Raises LedgerError
    without a usable machine id. Source: machine-id(5), which asks that the id not be used directly:
    each component is the key of an HMAC.
    """
    ident = _machine_id(root / _MACHINE_ID_FILE)
    serial_file, uuid_file = root / _BOARD_SERIAL_FILE, root / _PRODUCT_UUID_FILE
    # Ignoring an error would change the identity and make the ledger a foreign one.
    with _reported("the board's serial number", serial_file):
        serial = _read(serial_file)
    with _reported("the product UUID", uuid_file):
        uuid = None if _is_hidden(uuid_file, state_dir) else _read(uuid_file)
    return MachineIdentity(
        machine_id=_hash(ident, _MACHINE_ID),
        board_serial=_hash(serial, _BOARD_SERIAL) if serial else None,
        product_uuid=_hash(_canonical(uuid), _PRODUCT_UUID) if uuid else None,
        joint=hmac.digest(ident, b"esp-gw ledger\0" + serial, hashlib.sha256).hex(),
        hides_uuid=uuid is None,
    )


def _machine_id(path: Path) -> bytes:
    with _reported("the machine id", path):
        ident = _read(path)
    if not _MACHINE_ID_FORM.fullmatch(ident) or not ident.strip(b"0"):
        raise LedgerError(
            "this machine has no machine id",
            where=str(path),
            hint="run 'systemd-machine-id-setup' as root",
        )
    return ident


def _read(path: Path) -> bytes:
    """Read a file without the space and zeros at its ends; empty if there is none."""
    try:
        return path.read_bytes().strip(b"\0 \n")
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _is_hidden(path: Path, state_dir: Path | None) -> bool:
    """True if there is a file that the gateway's user may not read.

    The kernel gives the product UUID to root alone; tmpfiles.d can add the gateway's group. In an
    unprivileged container not even root may read it, or change that.
    """
    try:
        with path.open("rb") as stream:
            file = os.fstat(stream.fileno())
    except PermissionError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    if os.geteuid() != 0 or state_dir is None or not state_dir.exists():
        return False
    user = state_dir.stat()
    if user.st_uid in (0, file.st_uid):
        return False
    return not file.st_mode & (stat.S_IRGRP if file.st_gid == user.st_gid else stat.S_IROTH)


@contextlib.contextmanager
def _reported(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(f"can't read {what}: {error.strerror}", where=str(path)) from None


def _canonical(uuid: bytes) -> bytes:
    """One form for both byte orders of a UUID's fields (SMBIOS 3.x 7.2.1).

    Which of them is shown has changed with the SMBIOS version of a virtual machine's firmware.
    """
    try:
        ident = UUID(uuid.decode())
    except ValueError:
        return uuid
    return min(ident.bytes, ident.bytes_le)


def _hash(value: bytes, name: str) -> str:
    return hmac.digest(value, b"esp-gw ledger " + name.encode(), hashlib.sha256).hex()


def _in_words(same: list[str], other: list[str]) -> str:
    text = f"other {_list(other)}"
    if not same:
        return text
    cause = "a cloned or moved disk" if _MACHINE_ID in same else "a reinstalled system"
    return f"same {_list(same)}, {text}: {cause}"


def _list(names: list[str]) -> str:
    return " and ".join(_WORDS[name] for name in names)
