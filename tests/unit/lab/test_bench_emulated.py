"""The tables made from the counts of the qemu plugin; a script stands in for qemu."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.errors import LabError
from lab.bench.emulated import Board, Emulator, table

PI_5 = Board("Pi 5", "cortex-a76")
PI_4 = Board("Pi 4", "cortex-a72", preload=Path("/no_aes.so"))

# Startup takes a million instructions, a packet of case N 100 + N; ten times that without AES.
QEMU = """#!/usr/bin/env python3
import json, sys

def value(name):
    return sys.argv[sys.argv.index(name) + 1]

if "--cases" in sys.argv:
    sizes = 64, 62500, 1400
    print(json.dumps([{"test": "encap", "size": n, "provider": "openssl"} for n in sizes]))
    packets = each = aes = 0
else:
    packets = 64 * int(value("--batches"))
    aes = value("-cpu") == "cortex-a76" and "-E" not in sys.argv
    each = (100 + int(value("--case"))) * (1 if aes else 10)
    print(packets, "aes pmull" if aes else "")
print(f"{1_000_000 + packets * each} instructions, {packets * 7 * aes} crypto", file=sys.stderr)
"""


def emulator(folder: Path, monkeypatch: pytest.MonkeyPatch, qemu: str) -> Emulator:
    program = folder / "qemu-aarch64"
    program.write_text(qemu)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return Emulator(Path("/core_bench"), Path("/count.so"), Path("/libraries"))


def test_the_count_per_packet_excludes_program_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = table(emulator(tmp_path, monkeypatch, QEMU), "aes256gcm16", (PI_5, PI_4))
    assert found.head == ("per packet", "Pi 5", "of which AES", "Pi 4", "of which AES")
    assert found.rows == (
        ("encap, 64 bytes, openssl", "100", "7", "1,000", "0"),
        ("encap, 1,400 bytes, openssl", "102", "7", "1,020", "0"),
    )


@pytest.mark.parametrize(
    ("qemu", "message"),
    [
        ("#!/bin/sh\necho 'qemu-aarch64: no such plugin' >&2\nexit 1\n", "no such plugin"),
        ("#!/bin/sh\necho 64\n", "the plugin counted nothing"),
    ],
)
def test_an_error_of_qemu_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu: str, message: str
) -> None:
    with pytest.raises(LabError, match=message):
        emulator(tmp_path, monkeypatch, qemu).packet(PI_5)
