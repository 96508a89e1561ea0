"""Identity of the machine: the rows of the table in docs/explanation/safety.md, with fake roots."""

from __future__ import annotations

import hashlib
import hmac
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.errors import LedgerError, LedgerForeignError
from esp_gw.ledger.identity import MachineIdentity, machine_identity
from esp_gw.ledger.ledger import Ledger
from tests.support.ledgers import ESN, FakeHost, key, make_schema_1

ID, OTHER_ID = "0123456789abcdef0123456789abcdef", "1123456789abcdef0123456789abcdef"
SERIAL, OTHER_SERIAL = "10000000abcdef01", "10000000abcdef02"
UUID, OTHER_UUID = "4c4c4544-0042-3510-8052-b4c04f4e3132", "1c4c4544-0042-3510-8052-b4c04f4e3132"

PI = {"machine_id": ID, "serial": SERIAL}
PC = {"machine_id": ID, "uuid": UUID}
CONTAINER = {"machine_id": ID}
BOTH = {"machine_id": ID, "serial": SERIAL, "uuid": UUID}

Components = dict[str, str]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def first_number(path: Path, machine: MachineIdentity) -> int:
    """Open as the daemon does, and lease a number."""
    with closing(Ledger.open(path, machine)) as ledger:
        ledger.bind()
        return ledger.lease(key(1), 10, ESN).first


REFUSED: dict[str, tuple[Components, Components, str]] = {
    "card or container cloned for or moved to another Pi; board replaced": (
        PI,
        PI | {"serial": OTHER_SERIAL},
        "same machine id, other serial number of the board: a cloned or moved disk",
    ),
    "card of a Pi in a PC": (
        PI,
        PC,
        "same machine id, other serial number of the board: a cloned or moved disk",
    ),
    "disk of a PC in a Pi": (
        PC,
        PI,
        "same machine id, other serial number of the board and product UUID: a cloned or moved",
    ),
    "disk, virtual machine or privileged container cloned for or moved to another PC": (
        PC,
        PC | {"uuid": OTHER_UUID},
        "same machine id, other product UUID: a cloned or moved disk",
    ),
    "virtual machine cloned, with a new machine id": (
        PC,
        {"machine_id": OTHER_ID, "uuid": OTHER_UUID},
        "other machine id and product UUID)",
    ),
    "machine id made anew, PC": (
        PC,
        PC | {"machine_id": OTHER_ID},
        "same product UUID, other machine id: a reinstalled system",
    ),
    "machine id made anew, Pi": (
        PI,
        PI | {"machine_id": OTHER_ID},
        "same serial number of the board, other machine id: a reinstalled system",
    ),
    "container with a machine id of its own": (
        CONTAINER,
        {"machine_id": OTHER_ID},
        "other machine id)",
    ),
    "serial number gone": (BOTH, PC, "same machine id and product UUID, other serial number"),
    "serial number new": (PC, BOTH, "same machine id and product UUID, other serial number"),
    "product UUID gone": (BOTH, PI, "same machine id and serial number of the board, other prod"),
}


@pytest.mark.parametrize(("before", "now", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_ledger_of_another_machine_is_refused_and_the_difference_named(
    host: FakeHost, path: Path, before: Components, now: Components, reason: str
) -> None:
    Ledger.create(path, host.become(**before))
    assert first_number(path, host.become(**before)) == 1
    whole = path.read_bytes()
    with pytest.raises(LedgerForeignError) as refused:
        first_number(path, host.become(**now))
    assert f"this ledger was made on another machine ({reason}" in str(refused.value)
    assert "'esp-gw ledger create --replace'" in str(refused.value)
    assert path.read_bytes() == whole
    assert first_number(path, host.become(**before)) == 11


UNNOTICED: dict[str, tuple[Components, Components]] = {
    "backup restored, or snapshot of a virtual machine, on a Pi": (PI, PI),
    "backup restored, or snapshot of a virtual machine, on a PC": (PC, PC),
    "clone that keeps the product UUID": (PC, PC),
    "unprivileged container cloned or moved with its machine id": (CONTAINER, CONTAINER),
    "product UUID new: firmware or kernel of a board without one": (PI, BOTH),
    "container that becomes a virtual machine": (CONTAINER, PC),
}


@pytest.mark.parametrize(("before", "now"), UNNOTICED.values(), ids=UNNOTICED)
def test_what_no_component_shows_goes_on_where_the_file_ends(
    host: FakeHost, path: Path, before: Components, now: Components
) -> None:
    Ledger.create(path, host.become(**before))
    assert first_number(path, host.become(**before)) == 1
    assert first_number(path, host.become(**now)) == 11


def test_a_product_uuid_that_appears_is_bound_at_the_next_start(host: FakeHost, path: Path) -> None:
    Ledger.create(path, host.become(**PI))
    assert first_number(path, host.become(**BOTH)) == 1
    with pytest.raises(LedgerForeignError, match="other product UUID"):
        Ledger.open(path, host.become(**BOTH | {"uuid": OTHER_UUID}))
    with pytest.raises(LedgerForeignError, match="other product UUID"):
        Ledger.open(path, host.become(**PI))


def test_looking_at_a_ledger_binds_nothing(host: FakeHost, path: Path) -> None:
    Ledger.create(path, host.become(**PI))
    whole = path.read_bytes()
    Ledger.open(path, host.become(**BOTH)).close()
    assert path.read_bytes() == whole


def joint_hash(machine_id: str, serial: str) -> str:
    """The record of schema 1, written down anew."""
    message = b"esp-gw ledger\0" + serial.encode()
    return hmac.new(machine_id.encode(), message, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("components", [PI, PC, CONTAINER, BOTH], ids=["pi", "pc", "none", "both"])
def test_a_ledger_of_schema_1_goes_on_and_is_bound_to_every_component(
    host: FakeHost, path: Path, components: Components
) -> None:
    machine = host.become(**components)
    Ledger.create(path, machine)
    assert first_number(path, machine) == 1
    make_schema_1(path, joint_hash(ID, components.get("serial", "")))
    assert first_number(path, machine) == 11
    for name in components:
        other = {"machine_id": OTHER_ID, "serial": OTHER_SERIAL, "uuid": OTHER_UUID}[name]
        with pytest.raises(LedgerForeignError):
            Ledger.open(path, host.become(**components | {name: other}))
    assert first_number(path, host.become(**components)) == 21


@pytest.mark.parametrize(
    "now",
    [
        PI | {"serial": OTHER_SERIAL},
        PI | {"machine_id": OTHER_ID},
        CONTAINER,
        BOTH | {"serial": OTHER_SERIAL},
    ],
    ids=["serial", "machine id", "no serial", "serial, with a uuid"],
)
def test_a_ledger_of_schema_1_from_another_machine_is_refused_and_left_alone(
    host: FakeHost, path: Path, now: Components
) -> None:
    Ledger.create(path, host.become(**PI))
    make_schema_1(path, joint_hash(ID, SERIAL))
    whole = path.read_bytes()
    with pytest.raises(LedgerForeignError, match=r"another machine \(other machine id or board\)"):
        first_number(path, host.become(**now))
    assert path.read_bytes() == whole


def test_a_hidden_product_uuid_is_no_lock_out_until_the_ledger_is_bound_to_it(
    host: FakeHost, path: Path
) -> None:
    readable = host.become(**PC)
    hidden = replace(readable, product_uuid=None, hides_uuid=True)
    Ledger.create(path, hidden)
    assert first_number(path, hidden) == 1
    assert first_number(path, readable) == 11
    whole = path.read_bytes()
    with pytest.raises(LedgerError, match=r"product_uuid: .*systemd-tmpfiles --create") as refused:
        first_number(path, hidden)
    assert not isinstance(refused.value, LedgerForeignError)
    assert path.read_bytes() == whole
    assert first_number(path, readable) == 21


def test_the_product_uuid_counts_for_root_only_if_the_gateway_s_user_may_read_it(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root makes the ledger, and the owner of the state directory opens it at every start."""
    host.become(**PC)
    state = tmp_path / "state"
    state.mkdir()
    real = Path.stat
    of_service = os.stat_result((*state.stat()[:4], 4242, os.getgid() + 1, *state.stat()[6:]))
    in_group = os.stat_result((*state.stat()[:4], 4242, host.uuid.stat().st_gid, *state.stat()[6:]))

    def seen(status: os.stat_result, mode: int) -> tuple[bool, bool]:
        host.uuid.chmod(mode)
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: 0)
            patch.setattr(
                Path, "stat", lambda self, **how: status if self == state else real(self, **how)
            )
            machine = machine_identity(state, root=host.root)
        return machine.product_uuid is not None, machine.hides_uuid

    assert seen(of_service, 0o400) == (False, True)
    assert seen(of_service, 0o440) == (False, True)
    assert seen(of_service, 0o444) == (True, False)
    assert seen(in_group, 0o400) == (False, True)
    assert seen(in_group, 0o440) == (True, False)
    # A gateway that runs as root, and a directory that is not there yet.
    of_root = os.stat_result((*state.stat()[:4], 0, 0, *state.stat()[6:]))
    assert seen(of_root, 0o400) == (True, False)
    assert machine_identity(tmp_path / "none", root=host.root).product_uuid is not None


def test_a_product_uuid_counts_the_same_in_either_byte_order(host: FakeHost) -> None:
    """VMware's SMBIOS 2.7 shows what its SMBIOS 2.4 showed with three fields turned round."""
    shown = host.become(machine_id=ID, uuid="5C241F42-A87F-FA60-6AF6-A46351CED0EB")
    turned = host.become(machine_id=ID, uuid="421f245c-7fa8-60fa-6af6-a46351ced0eb")
    assert shown == turned
    assert shown != host.become(machine_id=ID, uuid="5C241F42-A87F-FA60-6AF6-A46351CED0EC")
    for odd in ("Not Settable", "5C241F42"):
        assert host.become(machine_id=ID, uuid=odd).product_uuid not in (None, shown.product_uuid)


def test_a_record_holds_hashes_alone(host: FakeHost) -> None:
    record = host.become(**BOTH).record()
    hashes = [part.partition("=")[2] for part in record.split(" ")]
    assert [len(bytes.fromhex(one)) for one in hashes] == [32, 32, 32]
    assert len(set(hashes)) == 3
    for value in (ID, SERIAL, UUID):
        assert value[:8] not in record


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n", "0" * 32, "0123", None])
def test_a_missing_machine_id_is_reported_with_a_remedy(host: FakeHost, text: str | None) -> None:
    if text is not None:
        host.machine_id.write_text(text)
    with pytest.raises(LedgerError, match="systemd-machine-id-setup"):
        machine_identity(root=host.root)


@pytest.mark.parametrize("name", ["machine_id", "serial", "uuid"])
def test_an_unreadable_component_is_an_error_not_another_machine(host: FakeHost, name: str) -> None:
    host.become(**BOTH)
    path: Path = getattr(host, name)
    path.unlink()
    path.mkdir()
    with pytest.raises(LedgerError, match=f"{path}: can't read the .*: Is a directory") as refused:
        machine_identity(root=host.root)
    assert not isinstance(refused.value, LedgerForeignError)
