"""Identity of this machine: a ledger copied to another machine is not trusted there."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from esp_gw.errors import LedgerError

MACHINE_ID = Path("/etc/machine-id")
BOARD_SERIAL = Path("/sys/firmware/devicetree/base/serial-number")

_MACHINE_ID_FORM = re.compile(rb"[0-9a-f]{32}")


def machine_identity(machine_id: Path = MACHINE_ID, board_serial: Path = BOARD_SERIAL) -> str:
    """Identifier of this machine: 64 hex digits, a hash of machine id and board serial number.

    The serial number distinguishes two Raspberry Pis with copies of one SD card; a machine without
    one is identified by its machine id only. Raises LedgerError without a usable machine id.
    Source: machine-id(5), which asks that the id not be used directly: it is the key of an HMAC.
    """
    try:
        ident = machine_id.read_bytes().strip()
    except FileNotFoundError:
        ident = b""
    except OSError as error:
        raise LedgerError(
            f"can't read the machine id: {error.strerror}", where=str(machine_id)
        ) from None
    if not _MACHINE_ID_FORM.fullmatch(ident) or not ident.strip(b"0"):
        raise LedgerError(
            "this machine has no machine id",
            where=str(machine_id),
            hint="run 'systemd-machine-id-setup' as root",
        )
    return hmac.digest(ident, b"esp-gw ledger\0" + _serial(board_serial), hashlib.sha256).hex()


def _serial(board_serial: Path) -> bytes:
    try:
        return board_serial.read_bytes().strip(b"\0 \n")
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        # Ignoring it would change the identity of the machine and make the ledger a foreign one.
        raise LedgerError(
            f"can't read the board's serial number: {error.strerror}", where=str(board_serial)
        ) from None
