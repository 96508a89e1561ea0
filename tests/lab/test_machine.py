"""A ledger is used on the machine that made it alone; an earlier version's goes on."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace
from esp_gw.errors import LabError, LedgerForeignError
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import Ledger
from tests.support.labtools import MakePair, ping, sas
from tests.support.ledgers import make_schema_1

UUID, OTHER_UUID = "4c4c4544-0042-3510-8052-b4c04f4e3132", "1c4c4544-0042-3510-8052-b4c04f4e3132"
# The product UUID of a PC, as the kernel shows it: to root alone.
AS_PC = """\
mount -t tmpfs -o mode=755 tmpfs /sys/class && mkdir -p /sys/class/dmi/id || exit 1
(umask 377 && echo "$UUID" > /sys/class/dmi/id/product_uuid) || exit 1
exec "$@"
"""


class Pc(Namespace):
    """A host whose programs see a product UUID."""

    def __init__(self, host: Namespace, uuid: str) -> None:
        super().__init__(host.name)
        self._uuid = uuid

    def command(self, *arguments: str) -> list[str]:
        seen = ("env", f"UUID={self._uuid}", "unshare", "--mount", "sh", "-c", AS_PC, "sh")
        return super().command(*seen, *arguments)


def refusal(gateway: LabGateway) -> str:
    """Start a gateway that must not start; return its last line."""
    with pytest.raises(LabError) as refused:
        gateway.start()
    assert not gateway.is_running
    return str(refused.value)


def renew_ledger(gateway: LabGateway) -> Path:
    """Remove the ledger; return its path."""
    path = gateway.folder / "ledger.db"
    for file in gateway.folder.glob("ledger.db*"):
        file.unlink()
    return path


def first_seq(gateway: LabGateway) -> int:
    (seq,) = [int(sa["seq"]) for sa in sas(gateway).values() if sa["direction"] == "outbound"]
    return seq


def test_a_gateway_does_not_start_with_a_ledger_of_another_machine(
    make_pair_of_one_engine: MakePair,
) -> None:
    pair = make_pair_of_one_engine()
    here = machine_identity()
    path = renew_ledger(pair.a)
    Ledger.create(path, replace(here, machine_id="0" * 64))
    refused = refusal(pair.a)
    assert f"{path}: this ledger was made on another machine (" in refused
    assert "other machine id" in refused
    renew_ledger(pair.a)
    Ledger.create(path, replace(here, board_serial="0" * 64))
    assert "(same machine id, other serial number of the board:" in refusal(pair.a)


@pytest.mark.either_engine
def test_a_gateway_goes_on_with_the_ledger_of_an_earlier_version(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    target = pair.plan.inner(1)
    assert ping(pair.a.namespace, target, count=3) == 3
    before = first_seq(pair.a)
    pair.a.stop()
    serial = Path("/sys/firmware/devicetree/base/serial-number")
    message = b"esp-gw ledger\0" + (serial.read_bytes().strip(b"\0") if serial.exists() else b"")
    ident = Path("/etc/machine-id").read_bytes().strip()
    path = pair.a.folder / "ledger.db"
    make_schema_1(path, hmac.new(ident, message, hashlib.sha256).hexdigest())
    pair.a.start()
    assert first_seq(pair.a) == before
    assert ping(pair.a.namespace, target, count=3) == 3
    pair.a.stop()
    # Bound anew, to each component.
    with pytest.raises(LedgerForeignError, match=r"other machine id[):]"):
        Ledger.open(path, replace(machine_identity(), machine_id="0" * 64))


@pytest.mark.either_engine
def test_a_cloned_virtual_machine_with_the_same_machine_id_does_not_start(
    make_pair: MakePair,
) -> None:
    pair = make_pair()
    target = pair.plan.inner(1)
    host = pair.a.namespace
    pair.b.start()
    pair.a.namespace = Pc(host, UUID)
    pair.a.start()
    assert ping(host, target, count=3) == 3
    before = first_seq(pair.a)
    pair.a.kill()
    pair.a.namespace = Pc(host, OTHER_UUID)
    assert "(same machine id" in (refused := refusal(pair.a))
    assert "other product UUID: a cloned or moved disk)" in refused
    pair.a.namespace = Pc(host, UUID)
    pair.a.start()
    assert first_seq(pair.a) > before
    assert ping(host, target, count=3) == 3


SERVICE = """
import os, sys
from pathlib import Path
from esp_gw.errors import EspGwError
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import Ledger
os.setgroups([])
os.setgid(4243)
os.setuid(4242)
try:
    ledger = Ledger.open(Path(sys.argv[1]) / "ledger.db", machine_identity())
    ledger.bind()
    ledger.close()
except EspGwError as error:
    print(error)
else:
    print("works")
"""
STARTS = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/first /mnt/second
chown 4242:4243 /mnt/first /mnt/second
create() { "$PYTHON" -m esp_gw.cli.main ledger create --state-dir "$1" > /dev/null; }
start() { "$PYTHON" -c "$SERVICE" "$1"; }
create /mnt/first
start /mnt/first
chgrp 4243 "$FILE"
chmod 440 "$FILE"
create /mnt/second
start /mnt/second
start /mnt/first
chmod 400 "$FILE"
start /mnt/second
start /mnt/first
"""


def test_the_service_opens_what_root_made_and_reports_a_uuid_that_it_may_not_read_any_more() -> (
    None
):
    """With a real kernel's permissions, on a file in the place of the kernel's own."""
    file = "/sys/class/dmi/id/product_uuid"
    env = {"UUID": UUID, "FILE": file, "PYTHON": sys.executable, "SERVICE": SERVICE}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", AS_PC, "sh", "sh", "-c", STARTS],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["works"] * 3
    assert len(lines) == 5
    for line in lines[3:]:
        assert f"{file}: the ledger is bound to the product UUID, which" in line
        assert "systemd-tmpfiles --create" in line
