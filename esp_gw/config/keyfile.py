"""Key material in files and systemd credentials: lines of hex, key then salt, never displayed."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from esp_gw.errors import KeyAbsentError, KeyDeniedError, KeyFileError, printable
from esp_gw.files import is_absence, open_regular, privacy_fault, read_bounded, write_new
from esp_gw.model import KeyMaterial, Suite
from esp_gw.protocol import SALT_LEN

MAX_KEY_FILE_LEN = 16384
_HEX_DIGITS = re.compile(r"[0-9a-fA-F]+")
_ONLY_A_KEY = re.compile(r"\s*(0[xX])?[0-9a-fA-F]{32,}\s*")
_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,127}")


def generate(suite: Suite) -> KeyMaterial:
    """Fresh key material for a suite, from the kernel's random number generator."""
    return KeyMaterial.from_bytes(secrets.token_bytes(suite.keymat_len))


def is_a_key(text: str) -> bool:
    """True if text given as a file name is key material, which no message may repeat."""
    return _ONLY_A_KEY.fullmatch(text) is not None


def format_keymat(keymat: KeyMaterial) -> str:
    """Key and salt as hex digits without a prefix: one line of a key file."""
    return keymat.to_bytes().hex()


def parse_keymat(text: str, suite: Suite) -> KeyMaterial:
    """Key material from hex digits, with or without 0x: key then salt (RFC 4106 8.1).

    Raises KeyFileError; the message gives sizes in bytes and hex digits, never the text.
    """
    digits = text.strip().removeprefix("0x").removeprefix("0X")
    if not _HEX_DIGITS.fullmatch(digits):
        raise KeyFileError("the key is not hex: only the digits 0-9 and a-f, optionally after 0x")
    needed = suite.keymat_len
    if len(digits) != 2 * needed:
        found = f"{len(digits) // 2} bytes" if len(digits) % 2 == 0 else "half a byte too many"
        what = (
            f"the key has {len(digits)} hex digits ({found}), {suite.name} needs {2 * needed} "
            f"({needed} bytes: {suite.key_len} of key, then {SALT_LEN} of salt)"
        )
        raise KeyFileError(
            what, hint="the salt is missing" if len(digits) == 2 * suite.key_len else None
        )
    return KeyMaterial.from_bytes(bytes.fromhex(digits))


def read_key_file(path: Path, suite: Suite, count: int = 1) -> tuple[KeyMaterial, ...]:
    """Read the key material of `count` SAs from a text file: one line of hex each, `#` comments.

    It must be a regular file with mode 0600 or stricter, owned by root or the current user.
    Raises KeyFileError with the path in `where`, KeyAbsentError if the file isn't there.
    """
    return _read(
        path,
        suite,
        count,
        forbidden=0o077,
        hint=f"you or root must own it: chmod 600 {shlex.quote(printable(path))}",
    )


def read_credential(name: str, suite: Suite, count: int = 1) -> tuple[KeyMaterial, ...]:
    """Read the key material of `count` SAs from the systemd credential `name`, in key file format.

    Raises KeyFileError, KeyAbsentError. Source: systemd.exec(5), LoadCredential=.
    """
    if not _CREDENTIAL_NAME.fullmatch(name) or ".." in name:
        raise KeyFileError(
            "is not a valid credential name",
            where="credential",
            hint="use letters, digits, . _ : -, without '/' or '..'",
        )
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise KeyAbsentError(
            "there are no credentials here (CREDENTIALS_DIRECTORY is not set)",
            where=f"credential {name}",
            hint="add LoadCredential= to the systemd unit, or use a key file",
        )
    # For a service with User=, systemd grants access through an ACL, whose mask appears as the
    # group's read bit: 0440.
    return _read(
        Path(folder) / name,
        suite,
        count,
        forbidden=0o037,
        hint="let systemd provide it by LoadCredential=",
    )


def write_key_file(path: Path, keymats: Sequence[KeyMaterial], comment: str = "") -> None:
    """Create a key file with mode 0600, one line for each key; never overwrites.

    The file is synced to disk on return. Raises KeyFileError with the path in `where`.
    """
    lines = [f"# {printable(line)}\n" for line in comment.splitlines()]
    lines += [f"{format_keymat(keymat)}\n" for keymat in keymats]
    content = "".join(lines)
    try:
        write_new(path, content.encode())
    except FileExistsError:
        raise KeyFileError(
            "exists already and is not overwritten",
            where=printable(path),
            hint="choose another name, or move the old file away",
        ) from None
    except FileNotFoundError:
        raise KeyFileError(
            "can't be created: its folder does not exist",
            where=printable(path),
            hint=f"run: mkdir -m 700 {shlex.quote(printable(path.parent))}",
        ) from None
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None


def _read(
    path: Path, suite: Suite, count: int, *, forbidden: int, hint: str
) -> tuple[KeyMaterial, ...]:
    where = printable(path)
    try:
        with open_regular(path) as (fd, status):
            if fault := privacy_fault(status, forbidden):
                raise KeyFileError(fault, where=where, hint=hint)
            content = read_bounded(fd, MAX_KEY_FILE_LEN)
    except OSError as error:
        raise _unusable(path, error) from None
    # Comments may be in any encoding, so lines are split before they are decoded.
    bare = [raw.partition(b"#")[0].strip() for raw in content.split(b"\n")]
    lines = [(number, line.decode("latin-1")) for number, line in enumerate(bare, 1) if line]
    if len(lines) != count:
        raise _wrong_count(where, len(lines), count)
    keymats = []
    for number, line in lines:
        try:
            keymats.append(parse_keymat(line, suite))
        except KeyFileError as error:
            raise KeyFileError(
                error.what, where=f"{where}, line {number}", hint=error.hint
            ) from None
    return tuple(keymats)


def _wrong_count(where: str, found: int, count: int) -> KeyFileError:
    there = {0: "has no line", 1: "has one line"}.get(found, f"has {found} lines")
    if count == 1:
        return KeyFileError(
            f"{there} of hex, one is needed: key then salt",
            where=where,
            hint=f"for a tunnel of {found} SAs set sas: {found}" if found > 1 else None,
        )
    return KeyFileError(
        f"{there} of hex, {count} are needed: key then salt, one line for each SA",
        where=where,
        hint=f"'esp-gw keygen --sas {count}' writes such a file",
    )


def _unusable(path: Path, error: OSError | ValueError) -> KeyFileError:
    reason = error.strerror if isinstance(error, OSError) else None
    text = reason or "is not a usable file name"
    if isinstance(error, FileNotFoundError):
        text = "the key file does not exist"
    elif isinstance(error, PermissionError):
        text = "the key file can't be opened: permission denied"
        return KeyDeniedError(text, where=printable(path))
    absent = isinstance(error, OSError) and is_absence(error)
    return (KeyAbsentError if absent else KeyFileError)(text, where=printable(path))
