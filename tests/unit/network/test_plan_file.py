"""The guard's plan on disk: what was written is read, and what is damaged is not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import NetworkError
from esp_gw.model import Origin, PortRange
from esp_gw.network.objects import Host
from esp_gw.network.plan import plan_guard, protection
from esp_gw.network.plan_file import NAMES, PlanFile, decode, encode
from tests.support.builders import bypass, discard, make_sa, protect, selector

SA = make_sa()
WHOLE = Desired(
    GatewaySettings(
        addresses=(ip_address("10.1.0.1"), ip_address("fd00:1::1")),
        table=5000,
        interface="esp7",
        fwmark=0x99,
        port=4501,
        source_check="off",
    ),
    (),
    (SA,),
    (
        bypass("dns", selector("0.0.0.0/0", "10.2.0.53/32", 17, None, PortRange(53, 53))),
        discard("no-mail", selector("10.1.0.0/24", "10.2.5.0/24", 6, PortRange(1, 9), None)),
        protect("t", SA.name, selector("10.1.0.0/24", "10.0.0.0/8")),
        protect("v6", SA.name, selector("fd00:1::/64", "::/0")),
    ),
)


@pytest.fixture
def plan(tmp_path: Path) -> PlanFile:
    return PlanFile(tmp_path)


def read(plan: PlanFile) -> Desired:
    stored = plan.read()
    assert stored is not None
    return stored.protection


def test_what_is_written_closes_the_same_as_before(plan: PlanFile) -> None:
    plan.write(protection(WHOLE))
    host = Host(frozenset({ip_address("10.1.0.1")}))
    assert plan_guard(read(plan), host) == plan_guard(WHOLE, host)
    assert read(plan).policies == protection(WHOLE).policies


def test_of_ike_the_standing_policies_alone_are_there(plan: PlanFile) -> None:
    trap = protect("ike:p1", "ike:00000100/out", selector("10.1.0.0/24", "10.9.0.0/16"))
    trap = replace(trap, origin=Origin.IKE, standing=True)
    guest = replace(trap, name="ike:p2", standing=False)
    plan.write(replace(WHOLE, policies=(*WHOLE.policies, guest, trap)))
    stored = plan.read()
    assert stored is not None
    assert stored.protection.policies == protection(WHOLE).policies
    assert stored.standing == (replace(trap, name="ike 1", sas=()),)


def test_a_plan_of_an_earlier_version_has_none_of_ike(plan: PlanFile, tmp_path: Path) -> None:
    plan.write(WHOLE)
    body = json.loads(json.loads((tmp_path / NAMES[0]).read_bytes())["plan"])
    del body["ikes"]
    text = json.dumps(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / NAMES[0]).write_text(json.dumps({"sha256": digest, "plan": text}))
    stored = plan.read()
    assert stored is not None
    assert (stored.fault, stored.standing) == (None, ())
    assert stored.protection.policies == protection(WHOLE).policies


def test_no_key_is_in_the_files(plan: PlanFile, tmp_path: Path) -> None:
    plan.write(protection(WHOLE))
    for name in NAMES:
        content = (tmp_path / name).read_bytes()
        for secret in (SA.keymat.key, SA.keymat.salt):
            assert secret not in content
            assert secret.hex().encode() not in content
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_without_files_there_is_no_plan(plan: PlanFile) -> None:
    assert plan.read() is None


@pytest.mark.parametrize("name", NAMES)
def test_one_missing_copy_is_no_matter(plan: PlanFile, tmp_path: Path, name: str) -> None:
    plan.write(protection(WHOLE))
    (tmp_path / name).unlink()
    assert read(plan).policies == protection(WHOLE).policies


CONTENT = encode(protection(WHOLE))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"sha256": 1, "plan": 2}',
        b"\xff\xfe",
        CONTENT[:-1],
        CONTENT[: len(CONTENT) // 2],
        CONTENT.replace(b"10.0.0.0/8", b"11.0.0.0/8"),
        b"[" * 100_000,
    ],
)
def test_a_damaged_copy_is_told_of_and_the_other_is_read(
    plan: PlanFile, tmp_path: Path, name: str, damage: bytes
) -> None:
    plan.write(protection(WHOLE))
    (tmp_path / name).write_bytes(damage)
    stored = plan.read()
    assert stored is not None
    assert stored.protection.policies == protection(WHOLE).policies
    # The backup is only looked at where the first copy is damaged.
    assert (stored.fault is not None) == (name == NAMES[0])
    plan.write(protection(WHOLE))
    assert (tmp_path / name).read_bytes() == CONTENT


def test_two_damaged_copies_are_one_error_that_names_both(plan: PlanFile, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(CONTENT[:-2])
    with pytest.raises(NetworkError) as caught:
        plan.read()
    assert all(name in str(caught.value) for name in NAMES)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("byte", range(0, len(CONTENT), 7))
def test_no_flipped_bit_is_read_as_another_plan(byte: int) -> None:
    flipped = bytearray(CONTENT)
    flipped[byte] ^= 1
    try:
        found = decode(bytes(flipped))
    except ValueError:
        return
    assert found == decode(CONTENT)


def test_a_plan_that_is_there_already_is_not_written_again(plan: PlanFile, tmp_path: Path) -> None:
    plan.write(protection(WHOLE))
    before = [(tmp_path / name).stat().st_ino for name in NAMES]
    plan.write(protection(WHOLE))
    assert [(tmp_path / name).stat().st_ino for name in NAMES] == before


def test_a_plan_of_unknown_form_is_damaged() -> None:
    body = json.dumps({"settings": {}, "policies": []})
    digest = hashlib.sha256(body.encode()).hexdigest()
    with pytest.raises(ValueError, match="damaged"):
        decode(json.dumps({"sha256": digest, "plan": body}).encode())
