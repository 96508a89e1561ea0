"""The small CA of `esp-gw init --ike --certificates`: what is asked of `pki`, and its faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.config.authority import issue, make_authority
from esp_gw.errors import EspGwError

RECORDING = """\
printf '%s ' "$@" >>{log}; printf '\\n' >>{log}
echo "-----BEGIN SOMETHING-----"
"""


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program `pki` in front of all others; return its log."""
    log = folder / "log"
    bin_dir = folder / "bin"
    bin_dir.mkdir()
    program = bin_dir / "pki"
    program.write_text("#!/bin/sh\n" + script.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    return log


def test_no_private_key_is_an_argument_and_each_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fake(tmp_path, monkeypatch, RECORDING)
    make_authority(tmp_path, "CA of a and b")
    issue(tmp_path, "a", tmp_path / "a.key", tmp_path / "a.pem")
    own, signed, key, certificate = log.read_text().splitlines()
    assert own.startswith("--gen ") and key.startswith("--gen ")
    assert signed.startswith("--self --ca ") and "--dn CN=CA of a and b " in signed
    assert certificate.startswith("--issue ") and "--san @a " in certificate
    assert f"--cakey {tmp_path / 'ca.key'} " in certificate
    assert f"--in {tmp_path / 'a.key'} " in certificate


def test_a_missing_pki_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EspGwError, match="pki is not installed") as caught:
        make_authority(tmp_path, "CA")
    assert "apt-get install strongswan-pki" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo first >&2; echo 'no\\033[2J plugin' >&2; exit 1\n",
            r"pki --gen: no\\x1b\[2J plugin",
        ),
        ("exit 1\n", "pki --gen: it made nothing"),
        ("echo nothing of use\n", "pki --gen: it made nothing"),
    ],
)
def test_what_pki_cannot_do_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    fake(tmp_path, monkeypatch, script)
    with pytest.raises(EspGwError, match=words) as caught:
        make_authority(tmp_path, "CA")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ca.key").exists()
