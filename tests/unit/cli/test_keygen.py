"""`esp-gw keygen` writes keys to a file or into a pipe, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from esp_gw.config.keyfile import parse_keymat, read_key_file
from esp_gw.model import SUITES
from tests.support.commands import Capture, fail, run


def test_keygen_writes_a_key_to_a_file_and_nowhere_else(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.key"
    out = run(capsys, "keygen", "--suite", "chacha20poly1305", "--out", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    (keymat,) = read_key_file(path, SUITES["chacha20poly1305"])
    assert keymat.to_bytes().hex() not in out
    assert "exists already" in fail(capsys, "keygen", "--out", str(path))
    several = tmp_path / "b.key"
    assert ": 4 keys for " in run(capsys, "keygen", "--sas", "4", "--out", str(several))
    keymats = read_key_file(several, SUITES["aes256gcm16"], 4)
    assert len({keymat.to_bytes() for keymat in keymats}) == 4
    assert "--sas" in fail(capsys, "keygen", "--sas", "65", "--out", str(path), status=2)
    assert "--out" in fail(capsys, "keygen", status=2)


def keygen(*options: str, to: int | BinaryIO) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "esp_gw.cli.main", "keygen", "--out", "-", *options]
    return subprocess.run(command, stdout=to, stderr=subprocess.PIPE, check=False)


def test_keygen_writes_to_a_pipe_what_sa_add_reads(tmp_path: Path) -> None:
    done = keygen("--sas", "2", to=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    keymats = [parse_keymat(line, SUITES["aes256gcm16"]) for line in done.stdout.decode().split()]
    assert len({keymat.to_bytes() for keymat in keymats}) == 2


def test_keygen_shows_no_key_in_a_terminal_and_leaves_none_in_a_file_of_the_shell(
    tmp_path: Path,
) -> None:
    with (tmp_path / "key").open("wb") as file:
        done = keygen(to=file)
    assert (done.returncode, (tmp_path / "key").read_bytes()) == (1, b"")
    assert b"stdout is not a pipe" in done.stderr
    ours, theirs = pty.openpty()
    done = keygen(to=theirs)
    os.write(theirs, b"end\n")
    assert os.read(ours, 65536).strip() == b"end"
    for end in (ours, theirs):
        os.close(end)
    assert done.returncode == 1
    assert not Path("-").exists()
