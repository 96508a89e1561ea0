"""A small certification authority for the two ends of a tunnel, by strongSwan's `pki`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from esp_gw.errors import EspGwError, printable
from esp_gw.files import write_new

CA_KEY, CA_CERTIFICATE = "ca.key", "ca.pem"
CA_DAYS, DAYS = 3652, 1826
_TIMEOUT = 60


def make_authority(folder: Path, name: str) -> None:
    """Write the private key and the certificate of a new CA into a folder.

    Keys are ECDSA with P-256. Raises EspGwError, and OSError if a file can't be written.
    """
    key = folder / CA_KEY
    _make_key(key)
    options = ("--type", "priv", "--in", str(key), "--dn", f"CN={name}")
    own = _pki("--self", "--ca", "--lifetime", str(CA_DAYS), *options)
    write_new(folder / CA_CERTIFICATE, own)


def issue(authority: Path, name: str, key: Path, certificate: Path) -> None:
    """Write a private key, and a certificate that the CA in a folder gives to its owner `name`.

    Raises EspGwError, and OSError if a file can't be written.
    """
    _make_key(key)
    signer = ("--cacert", str(authority / CA_CERTIFICATE), "--cakey", str(authority / CA_KEY))
    # `@`: the name of a host, also where it looks like an address.
    subject = ("--dn", f"CN={name}", "--san", f"@{name}")
    given = ("--type", "priv", "--in", str(key), "--lifetime", str(DAYS))
    write_new(certificate, _pki("--issue", *given, *signer, *subject))


def _make_key(path: Path) -> None:
    write_new(path, _pki("--gen", "--type", "ecdsa", "--size", "256"))


def _pki(command: str, *options: str) -> bytes:
    """Run `pki`, and return what it has made, in PEM."""
    whole = ["pki", command, *options, "--outform", "pem"]
    try:
        done = subprocess.run(
            whole, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise EspGwError(
            "pki is not installed, which makes the certificates",
            hint="on Debian: 'apt-get install strongswan-pki'; or leave --certificates out",
        ) from None
    except subprocess.TimeoutExpired:
        raise EspGwError(f"took longer than {_TIMEOUT} s", where=f"pki {command}") from None
    if done.returncode or b"-----BEGIN " not in done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it made nothing"]
        raise EspGwError(printable(lines[-1]), where=f"pki {command}")
    return done.stdout
