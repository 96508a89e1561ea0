"""Configurations for charon and the gateway, as `esp-gw init --ike` writes them."""

from __future__ import annotations

import stat
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from esp_gw.config import authority
from esp_gw.config.ike import Authentication, IkeTerms, make_ike_pair
from esp_gw.config.load import load_config
from esp_gw.config.offer import End
from esp_gw.config.pair import Pair
from esp_gw.desired import Desired
from esp_gw.errors import EspGwError
from esp_gw.model import SUITES, Action, Encapsulation, Mode
from tests.support.swanctl import read_settings

A = End("pi-a", ip_address("192.0.2.1"), (ip_network("10.1.0.0/24"),))
B = End("pi-b", ip_address("192.0.2.2"), (ip_network("10.2.0.0/24"), ip_network("10.3.0.0/24")))
TUNNEL = IkeTerms()
CERTIFICATES = IkeTerms(authentication=Authentication.CERTIFICATES)


@pytest.fixture(autouse=True)
def pki(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Record the calls of `pki`, whose results are PEM of random bytes, as far as a test sees."""
    calls: list[tuple[str, ...]] = []

    def answer(*command: str) -> bytes:
        calls.append(command)
        return f"-----BEGIN {command[0]} {len(calls)}-----\n".encode()

    monkeypatch.setattr(authority, "_pki", answer)
    return calls


def make(folder: Path, terms: IkeTerms = TUNNEL, a: End = A, b: End = B) -> Pair:
    return make_ike_pair(folder, a, b, terms)


def connection(folder: Path, here: str = "pi-a", there: str = "pi-b") -> dict[str, Any]:
    """Return the connection of an end with its only child, as charon would read it."""
    text = (folder / here / "swanctl/conf.d" / f"{there}.conf").read_text()
    ((_, connection),) = read_settings(text)["connections"].items()
    ((_, child),) = connection["children"].items()
    return {**connection, "child": child}


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_two_ends_mirror_each_other(tmp_path: Path) -> None:
    make(tmp_path)
    a, b = connection(tmp_path), connection(tmp_path, "pi-b", "pi-a")
    assert (a["local_addrs"], a["remote_addrs"]) == ("192.0.2.1", "192.0.2.2")
    assert (b["local_addrs"], b["remote_addrs"]) == ("192.0.2.2", "192.0.2.1")
    assert (a["local"], a["remote"]) == (b["remote"], b["local"])
    assert a["local"] == {"auth": "psk", "id": "@pi-a"}
    assert (a["child"]["local_ts"], a["child"]["remote_ts"]) == (
        "10.1.0.0/24",
        "10.2.0.0/24, 10.3.0.0/24",
    )
    assert (a["child"]["local_ts"], a["child"]["remote_ts"]) == (
        b["child"]["remote_ts"],
        b["child"]["local_ts"],
    )
    for end in (a, b):
        assert end["proposals"] == "aes256gcm16-prfsha256-x25519"
        assert end["child"]["esp_proposals"] == "aes256gcm16-x25519-esn"
        assert end["child"]["start_action"] == "trap"
        assert (end["version"], end["encap"], end["dpd_delay"]) == ("2", "yes", "30s")


def test_a_word_that_an_old_charon_refuses_stands_in_comments_alone(tmp_path: Path) -> None:
    make(tmp_path)
    lines = (tmp_path / "pi-a/swanctl/conf.d/pi-b.conf").read_text().splitlines()
    quantum = [line.strip() for line in lines if "mlkem" in line]
    assert len(quantum) == 2
    assert all(line.startswith("# ") for line in quantum)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_the_suite_is_the_proposal_of_the_child(tmp_path: Path, suite: str) -> None:
    make(tmp_path, replace(TUNNEL, suite=SUITES[suite]))
    assert connection(tmp_path)["child"]["esp_proposals"] == f"{suite}-x25519-esn"


def test_raw_esp_and_transport_mode(tmp_path: Path) -> None:
    terms = IkeTerms(Mode.TRANSPORT, Encapsulation.NONE)
    make(tmp_path, terms, replace(A, nets=()), replace(B, nets=()))
    end = connection(tmp_path)
    assert "encap" not in end
    assert end["child"]["mode"] == "transport"
    assert "local_ts" not in end["child"]
    assert load_config(tmp_path / "pi-a" / "gateway.yaml").settings.addresses == ()


def test_both_gateways_are_ready_and_have_no_keys(tmp_path: Path) -> None:
    pair = make(tmp_path)
    for path, address in ((pair.local, "10.1.0.1"), (pair.remote, "10.2.0.1")):
        desired = load_config(path)
        assert (desired.tunnels, desired.sas, desired.policies) == ((), (), ())
        assert (desired.settings.port, desired.settings.interface) == (4500, "esp0")
        assert desired.settings.addresses == (ip_address(address),)
        assert not (path.parent / "keys").exists()


def test_settings_of_a_side_take_the_place_of_defaults(tmp_path: Path) -> None:
    pair = make(tmp_path, a=replace(A, settings={"port": 4501, "allow_cut_off": True}))
    settings = load_config(pair.local).settings
    assert (settings.port, settings.allow_cut_off) == (4501, True)


def test_the_shared_secret_has_256_bits_and_a_private_file_of_its_own(tmp_path: Path) -> None:
    found = set()
    for run in ("one", "two"):
        make(tmp_path / run)
        secrets = []
        for here, there in (("pi-a", "pi-b"), ("pi-b", "pi-a")):
            path = tmp_path / run / here / "swanctl/conf.d" / f"{there}.secrets.conf"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            ((_, entry),) = read_settings(path.read_text())["secrets"].items()
            assert {entry["id-1"], entry["id-2"]} == {"@pi-a", "@pi-b"}
            secrets.append(entry["secret"])
        assert secrets[0] == secrets[1]
        secret = secrets[0].removeprefix("0x")
        assert len(bytes.fromhex(secret)) == 32
        found.add(secret)
        for path, content in everything(tmp_path / run).items():
            assert (secret.encode() in content) == path.name.endswith(".secrets.conf")
    assert len(found) == 2


@pytest.mark.parametrize("terms", [TUNNEL, CERTIFICATES])
def test_folders_and_files_are_private(tmp_path: Path, terms: IkeTerms) -> None:
    make(tmp_path / "out", terms)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_each_end_has_only_its_own_private_key(tmp_path: Path, pki: list[tuple[str, ...]]) -> None:
    make(tmp_path, CERTIFICATES)
    keys = {path: content for path, content in everything(tmp_path).items() if b"--gen" in content}
    assert {str(path.relative_to(tmp_path)) for path in keys} == {
        "ca/ca.key",
        "pi-a/swanctl/private/pi-a-for-pi-b.key",
        "pi-b/swanctl/private/pi-b-for-pi-a.key",
    }
    assert len(set(keys.values())) == 3
    ca = (tmp_path / "ca/ca.pem").read_bytes()
    for here, there in (("pi-a", "pi-b"), ("pi-b", "pi-a")):
        folder = tmp_path / here / "swanctl"
        end = connection(tmp_path, here, there)
        assert end["local"]["auth"] == end["remote"]["auth"] == "pubkey"
        assert (folder / "x509" / end["local"]["certs"]).exists()
        assert (folder / "x509ca" / end["remote"]["cacerts"]).read_bytes() == ca
        assert not list(folder.rglob("*.secrets.conf"))
    issued = [command for command in pki if command[0] == "--issue"]
    assert [command[command.index("--san") + 1] for command in issued] == ["@pi-a", "@pi-b"]


def test_two_peers_of_one_machine_have_files_of_their_own(tmp_path: Path) -> None:
    for number, peer in enumerate(("pi-b", "office")):
        make(tmp_path / peer, CERTIFICATES, b=replace(B, name=peer))
        make(tmp_path / f"psk-{number}", b=replace(B, name=peer))
    one, other = (
        {str(path.relative_to(tmp_path / peer / "pi-a/swanctl")) for path in everything(tmp_path)
         if path.is_relative_to(tmp_path / peer / "pi-a/swanctl")}
        for peer in ("pi-b", "office")
    )  # fmt: skip
    assert len(one) == len(other) == 4
    assert not one & other


def test_a_name_with_a_dot_divides_no_section(tmp_path: Path) -> None:
    make(tmp_path, a=replace(A, name="gw.example.org"), b=replace(B, name="10.0.0.1"))
    text = (tmp_path / "gw.example.org/swanctl/conf.d/10.0.0.1.conf").read_text()
    ((name, found),) = read_settings(text)["connections"].items()
    assert name == "10-0-0-1"
    assert list(found["children"]) == ["10-0-0-1"]
    # The name of a host, also where it looks like an address.
    assert (found["local"]["id"], found["remote"]["id"]) == ("@gw.example.org", "@10.0.0.1")


def test_an_end_whose_address_changes_may_come_from_anywhere(tmp_path: Path) -> None:
    make(tmp_path, a=replace(A, written="auto"))
    assert "local_addrs" not in connection(tmp_path)
    assert connection(tmp_path, "pi-b", "pi-a")["remote_addrs"] == "192.0.2.1, %any"


@pytest.mark.parametrize("existing", ["pi-a", "pi-b", "ca"])
def test_nothing_is_overwritten_and_nothing_half_written_remains(
    tmp_path: Path, existing: str
) -> None:
    (tmp_path / existing).mkdir()
    (tmp_path / existing / "mine").write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(EspGwError, match="exists already") as caught:
        make(tmp_path, CERTIFICATES)
    assert existing in str(caught.value)
    assert everything(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [existing]


NO_NETS = replace(B, nets=())
SIX = replace(B, nets=(ip_network("fd00::/64"),))


@pytest.mark.parametrize(
    ("terms", "a", "b", "words"),
    [
        (TUNNEL, A, replace(B, outer=A.outer), "both sides have the outer address 192.0.2.1"),
        (TUNNEL, A, replace(B, outer=ip_address("2001:db8::1")), "are of two families"),
        (TUNNEL, A, NO_NETS, "of different IP versions"),
        (TUNNEL, A, SIX, "of different IP versions"),
        (
            TUNNEL,
            A,
            replace(B, nets=(*B.nets, A.nets[0])),
            "both sides have the network 10.1.0.0/24",
        ),
        (TUNNEL, replace(A, nets=()), NO_NETS, "there are none"),
        (IkeTerms(Mode.TRANSPORT), A, B, "give no networks"),
        (TUNNEL, A, replace(B, name="pi-a"), "both sides have the name"),
        (TUNNEL, A, replace(B, name="../b"), "expected a name"),
        (TUNNEL, A, replace(B, name="a\nb"), "expected a name"),
        (TUNNEL, A, replace(B, settings={"port": 0}), "port"),
    ],
)
def test_an_invalid_pair_leaves_nothing(
    tmp_path: Path, terms: IkeTerms, a: End, b: End, words: str
) -> None:
    with pytest.raises(EspGwError, match=words) as caught:
        make(tmp_path / "x" / "y", terms, a, b)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*command: str) -> bytes:
        raise EspGwError("pki is not installed")

    monkeypatch.setattr(authority, "_pki", fail)
    with pytest.raises(EspGwError, match="pki is not installed"):
        make(tmp_path / "out", CERTIFICATES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(1, 13))
def test_a_full_disk_at_any_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    from esp_gw import files

    real, calls = files.os.open, 0

    def full(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        nonlocal calls
        if flags & files.os.O_CREAT:
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(files.os, "open", full)
    with pytest.raises(EspGwError, match="No space left"):
        make(tmp_path / "out", CERTIFICATES)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_the_judge_sees_the_child_and_what_it_refuses_leaves_nothing(tmp_path: Path) -> None:
    seen: list[Desired] = []

    def refuse(desired: Desired) -> None:
        seen.append(desired)
        raise EspGwError("it would be cut off")

    with pytest.raises(EspGwError, match="cut off"):
        make_ike_pair(tmp_path / "out", A, B, TUNNEL, refuse)
    (policy,) = seen[0].policies
    assert policy.action is Action.PROTECT
    assert [str(selector.remote) for selector in policy.selectors] == ["10.2.0.0/24", "10.3.0.0/24"]
    assert list(tmp_path.iterdir()) == []
