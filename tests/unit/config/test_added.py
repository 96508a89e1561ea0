from __future__ import annotations

import json
import stat
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from esp_gw import files
from esp_gw.config.added import (
    STORE_NAME,
    Store,
    StoredState,
    merge,
    parse_policy_entry,
    parse_sa_entry,
)
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import WRONG_STATE, ControlError, EspGwError, StoreDamagedError
from esp_gw.model import Action, Direction, Encapsulation, Mode, Origin, Policy, PortRange, Selector

pytestmark = pytest.mark.filterwarnings("error")

KEY = "c0ffee" * 12

SA: dict[str, object] = {
    "name": "b/out",
    "direction": "outbound",
    "spi": 4097,
    "key": KEY,
    "local": "192.0.2.1",
    "remote": "192.0.2.2",
    "local_ts": ["10.1.0.0/24"],
    "remote_ts": ["10.2.0.0/24"],
}
FULL_SA = {
    **SA,
    "name": "c",
    "spi": "0xffffffff",
    "suite": "chacha20poly1305",
    "mode": "tunnel",
    "encapsulation": "udp",
    "remote_port": 4501,
    "protocol": "tcp",
    "local_ts_port": "1000-2000",
    "remote_ts_port": 22,
    "esn": False,
    "replay_window": 128,
    "keepalive": 0,
    "pair": "c-in",
}
POLICY: dict[str, object] = {
    "name": "web",
    "action": "protect",
    "sa": "b/out",
    "remote_ts": "10.2.0.0/24",
}


def state_of(*entries: dict[str, object]) -> StoredState:
    return StoredState(
        sas=tuple(parse_sa_entry(entry) for entry in entries if "spi" in entry),
        policies=tuple(parse_policy_entry(entry) for entry in entries if "action" in entry),
    )


STATE = state_of(SA, FULL_SA, POLICY, {**POLICY, "name": "first", "before": "web"})


def test_an_entry_becomes_an_sa_of_the_cli() -> None:
    sa = parse_sa_entry(FULL_SA).to_sa()
    assert sa.origin is Origin.CLI
    assert (sa.name, sa.direction, sa.spi) == ("c", Direction.OUTBOUND, 0xFFFFFFFF)
    assert sa.suite.name == "chacha20poly1305"
    assert sa.keymat.to_bytes().hex() == KEY
    assert (sa.mode, sa.encapsulation) == (Mode.TUNNEL, Encapsulation.UDP)
    assert (sa.local, sa.remote) == (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
    assert (sa.remote_port, sa.esn, sa.replay_window, sa.keepalive) == (4501, False, 128, 0)
    assert (sa.pair, sa.tunnel) == ("c-in", None)
    assert sa.selectors == (
        Selector(
            ip_network("10.1.0.0/24"),
            ip_network("10.2.0.0/24"),
            6,
            PortRange(1000, 2000),
            PortRange(22, 22),
        ),
    )


def test_defaults_of_an_sa_are_those_of_a_tunnel() -> None:
    sa = parse_sa_entry(SA).to_sa()
    assert (sa.suite.name, sa.esn, sa.replay_window) == ("aes256gcm16", True, 4096)
    assert (sa.keepalive, sa.remote_port) == (20, 4500)
    assert sa.liveness == 0
    inbound = parse_sa_entry({**SA, "direction": "inbound", "liveness": 5}).to_sa()
    assert (inbound.keepalive, inbound.liveness) == (0, 0)


def test_authentic_keepalives_are_kept_and_absent_in_older_files(tmp_path: Path) -> None:
    path = tmp_path / STORE_NAME
    Store(path).save(state_of({**SA, "liveness": 5}))
    (entry,) = Store(path).load().sas
    assert (entry.to_sa().liveness, entry.to_sa().keepalive) == (5, 0)
    document = json.loads(path.read_text())
    del document["sas"][0]["liveness"]
    path.write_text(json.dumps(document))
    (entry,) = Store(path).load().sas
    assert (entry.to_sa().liveness, entry.to_sa().keepalive) == (0, 20)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spi": 255}, "spi"),
        ({"spi": True}, "spi"),
        ({"spi": 4097.0}, "spi"),
        ({"spi": "9" * 5000}, "spi"),
        ({"direction": "sideways"}, "direction"),
        ({"key": KEY[:-2]}, "key"),
        ({"key": "x" + KEY[1:]}, "key"),
        ({"key": 12}, "key"),
        ({"key": [KEY]}, "key"),
        ({"suite": "aes128gcm16"}, "key"),
        ({"suite": KEY}, "suite"),
        ({"name": KEY}, "name"),
        ({"name": "b/sideways"}, "name"),
        ({"local": KEY}, "local"),
        ({"remote": "192.0.2.1"}, "remote"),
        ({"remote_ts": None}, "remote_ts"),
        ({"remote_ts": ["10.2.0.1/24"]}, "remote_ts[0]"),
        ({"remote_ts": ["fd00::/64"]}, "remote_ts"),
        ({"remote_ts": []}, "remote_ts"),
        ({"mode": "transport"}, "local_ts"),
        ({"encapsulation": "none", "remote_port": 4500}, "remote_port"),
        ({"protocol": "icmp", "local_ts_port": 1}, "local_ts_port"),
        ({"replay_window": 100}, "replay_window"),
        ({"esn": 1}, "esn"),
        ({"keepalive": True}, "keepalive"),
        ({"liveness": 3601}, "liveness"),
        ({"pair": "b/out"}, "pair"),
        ({KEY: 1}, "(a long name)"),
        ({"origin": "config"}, "origin"),
    ],
)
def test_a_bad_sa_names_the_field_and_never_the_key(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ControlError) as caught:
        parse_sa_entry({**SA, **changes})
    error = caught.value
    assert error.code == "InvalidParameter"
    assert error.what.startswith(f"{field}: ") or f"; {field}: " in error.what
    assert "\n" not in str(error)
    assert "c0ffee" not in str(error).lower()
    assert error.__suppress_context__


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"action": "allow"}, "action"),
        ({"sa": None}, "sa"),
        ({"action": "bypass"}, "sa"),
        ({"remote_ts": "10.0.0.1/8"}, "remote_ts[0]"),
        ({"before": "web"}, "before"),
        ({"before": "a b"}, "before"),
        ({"name": "-web"}, "name"),
        ({"local_port": "2000-1000"}, "local_port"),
        ({"protocol": "udp", "remote_port": 65536}, "remote_port"),
        ({"spi": 1}, "spi"),
    ],
)
def test_a_bad_policy_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ControlError) as caught:
        parse_policy_entry({**POLICY, **changes})
    assert caught.value.what.startswith(f"{field}: ")


def test_missing_fields_are_all_named() -> None:
    with pytest.raises(ControlError) as caught:
        parse_sa_entry({})
    for field in ("name", "direction", "spi", "key", "local", "remote", "local_ts", "remote_ts"):
        assert f"{field}: is missing" in caught.value.what


def test_a_policy_without_local_ts_matches_all_of_its_family() -> None:
    entry = parse_policy_entry({**POLICY, "remote_ts": ["fd00::/64", "10.2.0.0/24"]})
    assert entry.to_policy() == Policy(
        "web",
        Action.PROTECT,
        (
            Selector(ip_network("0.0.0.0/0"), ip_network("10.2.0.0/24")),
            Selector(ip_network("::/0"), ip_network("fd00::/64")),
        ),
        sas=("b/out",),
        origin=Origin.CLI,
    )


def test_an_entry_shows_its_key_nowhere() -> None:
    entry = parse_sa_entry(SA)
    shown = (repr(entry), str(entry), str(entry.model_dump()), entry.model_dump_json(), repr(STATE))
    assert not any("c0ffee" in text for text in shown)


def test_a_saved_state_is_loaded_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "cli.json")
    assert store.load() == StoredState()
    store.save(STATE)
    loaded = store.load()
    assert loaded == STATE
    assert [entry.to_sa() for entry in loaded.sas] == [entry.to_sa() for entry in STATE.sas]
    assert [entry.to_policy() for entry in loaded.policies] == [
        entry.to_policy() for entry in STATE.policies
    ]
    store.save(StoredState())
    assert store.load() == StoredState()


def test_defaults_are_written_out_so_that_a_later_default_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "cli.json")
    store.save(STATE)
    saved = json.loads(store.path.read_bytes())["sas"][0]
    assert {"suite", "esn", "replay_window", "mode", "encapsulation"} <= saved.keys()


def test_the_file_is_private_and_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "cli.json")
    (tmp_path / ".cli.json.new").write_text("left behind by a crash")
    store.save(STATE)
    store.save(STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["cli.json"]
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = Store(tmp_path / "cli.json")
    store.save(STATE)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(EspGwError, match="No space left"):
        store.save(StoredState())
    monkeypatch.undo()
    assert store.load() == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["cli.json"]


def test_a_file_open_to_others_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "cli.json")
    store.save(STATE)
    store.path.chmod(0o644)
    with pytest.raises(StoreDamagedError, match="chmod 600"):
        store.load()


def saved_text(tmp_path: Path) -> bytes:
    store = Store(tmp_path / "cli.json")
    store.save(STATE)
    return store.path.read_bytes()


def assert_damaged(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "cli.json")
    files.replace(store.path, content)
    with pytest.raises(StoreDamagedError) as caught:
        store.load()
    assert caught.value.exit_status == WRONG_STATE
    text = str(caught.value)
    assert "damaged" in text
    assert "mv " in text
    assert "\n" not in text
    assert "c0ffee" not in text
    assert store.path.read_bytes() == content


def test_a_damaged_file_is_never_dropped(tmp_path: Path) -> None:
    good = saved_text(tmp_path)
    document = json.loads(good)
    for content in (
        b"",
        good[:-10],
        good[: len(good) // 2],
        b"\xff" + good,
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        b"9" * 10_000,
        json.dumps({**document, "version": 2}).encode(),
        json.dumps({**document, "more": []}).encode(),
        json.dumps({**document, "sas": {}}).encode(),
        json.dumps({**document, "sas": [KEY]}).encode(),
        json.dumps({**document, "sas": [{**document["sas"][0], "spi": 1}]}).encode(),
        json.dumps({**document, "sas": [{**document["sas"][0], "key": KEY + "0"}]}).encode(),
        json.dumps({**document, "policies": [{**document["policies"][0], "sa": 1}]}).encode(),
        json.dumps({**document, "policies": [document["sas"][0]]}).encode(),
    ):
        assert_damaged(tmp_path, content)


def desired(*names: str) -> Desired:
    selectors = (Selector(ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")),)
    return Desired(
        GatewaySettings(),
        policies=tuple(Policy(name, Action.DISCARD, selectors) for name in names),
        sas=(parse_sa_entry({**SA, "name": "config"}).to_sa(),),
        warnings=("careful",),
    )


def policies(*pairs: tuple[str, str | None]) -> StoredState:
    return state_of(
        *(
            {"name": n, "action": "bypass", "remote_ts": "10.9.0.0/24", "before": b}
            for n, b in pairs
        )
    )


def order(state: StoredState, *names: str) -> list[str]:
    return [policy.name for policy in merge(desired(*names), state).policies]


def test_merged_sas_follow_those_of_the_configuration() -> None:
    merged = merge(desired("a"), STATE_WITHOUT_POLICIES)
    assert [sa.name for sa in merged.sas] == ["config", "b/out", "c"]
    assert merged.warnings == ("careful",)
    assert merge(desired("a"), StoredState()) == desired("a")


STATE_WITHOUT_POLICIES = state_of(SA, FULL_SA)


def test_policies_are_placed_in_order_of_addition() -> None:
    assert order(policies(("x", None), ("y", None)), "a", "b") == ["a", "b", "x", "y"]
    assert order(policies(("x", "b"), ("y", "b")), "a", "b") == ["a", "x", "y", "b"]
    assert order(policies(("x", "a"), ("y", "x"), ("z", None)), "a") == ["y", "x", "a", "z"]


def test_a_policy_may_stand_before_one_added_later() -> None:
    assert order(policies(("x", "y"), ("y", "a")), "a") == ["x", "y", "a"]


@pytest.mark.parametrize(
    "state", [policies(("x", "gone")), policies(("y", None), ("x", "z"), ("z", "x"))]
)
def test_a_policy_without_its_place_is_never_put_elsewhere(state: StoredState) -> None:
    with pytest.raises(EspGwError, match="policy x must stand before"):
        merge(desired("a"), state)
