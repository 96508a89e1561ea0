"""The shared machine: its kernel, output and files, and the tests of inside/ that run in it.

One pytest in the machine runs all files of inside/: its start takes longer than most tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.evidence import RecordProperty
from tests.support.guest import Guest
from tests.support.inside import ALL_FILES, EVERY_RUN_FILES, FULL_FILES, InsideRun
from tests.support.matrix import REST

INSIDE = Path(__file__).parent / "inside"
AF_ALG = """
import socket
with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as sock:
    sock.bind(("aead", "rfc4106(gcm(aes))"))
"""


def test_the_kernel_is_debians_and_has_af_alg_esp_and_netem(guest: Guest) -> None:
    script = (
        'uname -r && python -c "$0" && ip netns add peer && ip -n peer link set lo up'
        " && ip -n peer xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x100 reqid 1"
        " mode tunnel aead 'rfc4106(gcm(aes))' 0x$(printf %072d 1) 128"
        " && ip -n peer xfrm state && tc -n peer qdisc add dev lo root netem delay 1ms"
        " && ip netns del peer"
    )
    result = guest.run("sh", "-c", script, AF_ALG)
    assert result.status == 0, result.tail
    assert result.stdout.split()[0].endswith("-amd64")
    assert "proto esp spi 0x00000100" in result.stdout


def test_output_and_exit_status_are_returned(guest: Guest) -> None:
    result = guest.run("sh", "-c", "echo to here; echo to there >&2; exit 42")
    assert (result.status, result.stdout, result.stderr) == (42, "to here\n", "to there\n")


def test_files_are_returned_in_out_and_nowhere_else(
    guest: Guest, out: Path, tmp_path: Path
) -> None:
    (out / "in").write_text("from the host")
    (tmp_path / "host").write_text("as it was")
    result = guest.run("sh", "-c", f"cat /out/in; echo new > /out/back; echo no > {tmp_path}/host")
    assert (result.status, result.stdout) == (0, "from the host"), result.tail
    assert (out / "back").read_text() == "new\n"
    assert (tmp_path / "host").read_text() == "as it was"


def test_the_machine_is_not_connected_to_any_network(guest: Guest) -> None:
    assert guest.run("ls", "/sys/class/net").stdout.split() == ["lo"]


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        *((name, "vm") for name in EVERY_RUN_FILES),
        *(pytest.param(name, REST, marks=pytest.mark.vm_full) for name in FULL_FILES),
    ],
)
def test_inside(inside: InsideRun, name: str, marker: str, record_property: RecordProperty) -> None:
    outcomes = inside.of(name, marker)
    assert outcomes, inside.tail
    record_property("inside", [(outcome.seconds, outcome.test) for outcome in outcomes])
    faults = [f"{outcome.test}: {fault}" for outcome in outcomes for fault in outcome.faults]
    if faults:
        pytest.fail("\n\n".join(faults), pytrace=False)
    unfinished = [outcome.test for outcome in outcomes if not outcome.finished]
    assert not unfinished, f"{unfinished}\n{inside.tail}"
    # Other files may have failed, but nothing beside a test.
    assert inside.status == int(any(outcome.faults for outcome in inside.outcomes)), inside.tail


def test_every_file_inside_is_run() -> None:
    files = {path.stem: path.read_text() for path in INSIDE.glob("test_*.py")}
    assert files.keys() == set(ALL_FILES)
    full = {name for name, text in files.items() if "every_run" in text or REST in text}
    assert full == set(FULL_FILES)
