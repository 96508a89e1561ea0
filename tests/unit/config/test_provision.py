from __future__ import annotations

import stat
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from esp_gw.config import provision
from esp_gw.config.load import load_config
from esp_gw.desired import Desired
from esp_gw.errors import EspGwError
from esp_gw.model import SUITES, Direction, Encapsulation, Mode
from tests.support.builders import mirrored

OUTER = {"local": ip_address("192.0.2.1"), "remote": ip_address("192.0.2.2")}
NETS = {"local_nets": [ip_network("10.1.0.0/24")], "remote_nets": [ip_network("10.2.0.0/24")]}


def make(output: Path, **changes: Any) -> tuple[Desired, Desired]:
    pair = provision.make_pair(output, **{**OUTER, **NETS, **changes})
    return load_config(pair.local), load_config(pair.remote)


def assert_mirrored(a: Desired, b: Desired) -> None:
    assert len(a.sas) == len(b.sas) == 2
    by_way = {sa.direction: sa for sa in b.sas}
    for sa in a.sas:
        other = Direction.INBOUND if sa.direction is Direction.OUTBOUND else Direction.OUTBOUND
        peer = by_way[other]
        assert (sa.spi, sa.keymat, sa.suite, sa.esn) == (
            peer.spi,
            peer.keymat,
            peer.suite,
            peer.esn,
        )
        assert (sa.mode, sa.encapsulation) == (peer.mode, peer.encapsulation)
        assert (sa.local, sa.remote) == (peer.remote, peer.local)
        assert set(mirrored(sa.selectors)) == set(peer.selectors)
    assert a.sas[0].keymat != a.sas[1].keymat
    assert a.sas[0].spi != a.sas[1].spi


@pytest.mark.parametrize("suite", sorted(SUITES))
@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_the_two_sides_mirror_each_other(
    tmp_path: Path, suite: str, encapsulation: Encapsulation
) -> None:
    a, b = make(tmp_path / "out", suite=SUITES[suite], encapsulation=encapsulation)
    assert_mirrored(a, b)
    assert a.sas[0].suite.name == suite
    assert a.sas[0].encapsulation is encapsulation
    assert a.settings.addresses == (ip_address("10.1.0.1"),)
    assert b.settings.addresses == (ip_address("10.2.0.1"),)
    assert bool(a.warnings) == a.sas[0].suite.is_readable


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_both_sides_send_authentic_keepalives(tmp_path: Path, encapsulation: Encapsulation) -> None:
    for side in make(tmp_path / "out", encapsulation=encapsulation):
        by_way = {sa.direction: (sa.liveness, sa.keepalive) for sa in side.sas}
        assert by_way == {Direction.OUTBOUND: (10, 0), Direction.INBOUND: (0, 0)}
    (quiet, _) = make(tmp_path / "quiet", encapsulation=encapsulation, liveness=0)
    assert {sa.liveness for sa in quiet.sas} == {0}


def test_transport_mode_needs_no_networks(tmp_path: Path) -> None:
    a, b = make(tmp_path, mode=Mode.TRANSPORT, local_nets=(), remote_nets=())
    assert_mirrored(a, b)
    assert a.settings.addresses == ()


def test_a_side_whose_prefix_is_everything_gets_no_address(tmp_path: Path) -> None:
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    nets = [ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")]
    a, b = make(tmp_path, local_nets=nets, remote_nets=everything)
    assert a.settings.addresses == (ip_address("10.1.0.1"), ip_address("fd00:1::1"))
    assert b.settings.addresses == ()


@pytest.mark.parametrize(
    ("nets", "own", "routers", "expected", "note"),
    [
        # A gateway behind the router of its own network.
        (["192.0.2.0/24"], [], [], [], "192.0.2.1 of this machine is in its own prefix"),
        (["10.9.0.0/24", "192.0.2.0/24"], [], [], [], "192.0.2.1 of this machine"),
        (["10.1.0.0/24"], ["10.1.0.7", "10.1.0.3"], [], [], "10.1.0.3 of this machine"),
        (["10.1.0.0/24"], ["10.2.0.1"], ["10.1.0.254"], ["10.1.0.1"], None),
        (["10.1.0.0/24"], [], ["10.1.0.1"], [], "10.1.0.1 of 10.1.0.0/24 is the default"),
        (["192.0.2.0/24", "fd00:1::/64"], [], [], ["fd00:1::1"], "192.0.2.1 of this machine"),
        (["fd00:1::/64"], ["fd00:1::5"], [], [], "fd00:1::5 of this machine"),
    ],
)
def test_no_address_is_given_where_the_machine_or_its_router_has_one(
    tmp_path: Path,
    nets: list[str],
    own: list[str],
    routers: list[str],
    expected: list[str],
    note: str | None,
) -> None:
    far = {False: "10.2.0.0/24", True: "fd00:2::/64"}
    a, _ = make(
        tmp_path,
        local_nets=[ip_network(net) for net in nets],
        remote_nets=list(dict.fromkeys(ip_network(far[":" in net]) for net in nets)),
        own=frozenset(map(ip_address, own)),
        routers=frozenset(map(ip_address, routers)),
    )
    assert a.settings.addresses == tuple(map(ip_address, expected))
    lines = (tmp_path / "pi-a" / "gateway.yaml").read_text().splitlines()
    told = [line for line in lines if line.startswith("# No address is added: ")]
    assert len(told) == (note is not None)
    assert note is None or note in told[0]


def test_the_other_end_has_no_address_either_where_its_outer_one_is_inside(tmp_path: Path) -> None:
    _, b = make(tmp_path, remote_nets=[ip_network("192.0.2.0/24")])
    assert b.settings.addresses == ()


def test_an_automatic_address_is_in_its_own_file_alone(tmp_path: Path) -> None:
    a, b = make(tmp_path, local_nets=[ip_network("192.0.2.0/24")], written_local="auto")
    assert {sa.local for sa in a.sas} == {ip_address("0.0.0.0")}
    assert {sa.remote for sa in b.sas} == {ip_address("192.0.2.1")}
    assert a.settings.addresses == ()
    lines = (tmp_path / "pi-b" / "gateway.yaml").read_text().splitlines()
    assert "followed to each new address" in lines[lines.index("    remote: 192.0.2.1") - 1]


def test_what_the_judge_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    def judge(desired: Desired) -> None:
        assert [str(sa.local) for sa in desired.sas] == ["192.0.2.1"] * 2
        raise EspGwError("not here")

    with pytest.raises(EspGwError, match="not here"):
        make(tmp_path / "out", judge=judge)
    assert list(tmp_path.iterdir()) == []


def test_both_families_over_ipv6(tmp_path: Path) -> None:
    a, b = make(
        tmp_path,
        local=ip_address("2001:db8::a:0"),
        remote=ip_address("2001:db8:b::"),
        local_nets=[
            ip_network("10.1.0.0/24"),
            ip_network("fd00:1::/64"),
            ip_network("10.9.0.0/24"),
        ],
        remote_nets=[ip_network("fd00:2::/64"), ip_network("10.2.0.7/32")],
    )
    assert_mirrored(a, b)
    assert len(a.policies[0].selectors) == 3
    assert a.settings.addresses == (ip_address("10.1.0.1"), ip_address("fd00:1::1"))
    assert b.settings.addresses == (ip_address("10.2.0.7"), ip_address("fd00:2::1"))


def test_names_addresses_and_settings_of_each_side(tmp_path: Path) -> None:
    a, b = make(
        tmp_path,
        names=("null", "1e3"),
        local_address=ip_address("10.1.0.9"),
        local_settings={"port": 4501, "interface": "esp1", "state_dir": tmp_path / "a b: c"},
        remote_settings={"port": 4502, "engine": "python"},
    )
    assert (a.settings.port, a.settings.interface) == (4501, "esp1")
    assert a.settings.state_dir == str(tmp_path / "a b: c")
    assert (b.settings.port, b.settings.engine) == (4502, "python")
    assert a.settings.addresses == (ip_address("10.1.0.9"),)
    assert [tunnel.name for tunnel in a.tunnels] == ["1e3"]
    assert [tunnel.name for tunnel in b.tunnels] == ["null"]


def test_folders_and_files_are_private(tmp_path: Path) -> None:
    make(tmp_path / "deep" / "out")
    found = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert len(found) == 1 + 1 + 2 * (1 + 1 + 1 + 2)
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_keys_are_only_in_key_files_and_new_each_time(tmp_path: Path) -> None:
    first, _ = make(tmp_path / "one")
    second, _ = make(tmp_path / "two")
    keys = {sa.keymat.to_bytes() for sa in (*first.sas, *second.sas)}
    assert len(keys) == 4
    for config in tmp_path.rglob("gateway.yaml"):
        assert not any(key.hex() in config.read_text() for key in keys)


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("existing", ["pi-a", "pi-b"])
def test_nothing_is_overwritten_and_nothing_half_written_remains(
    tmp_path: Path, existing: str
) -> None:
    (tmp_path / existing).mkdir()
    (tmp_path / existing / "mine").write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(EspGwError, match="exists already") as caught:
        make(tmp_path)
    assert existing in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"remote": OUTER["local"]},
        {"remote": ip_address("2001:db8::1")},
        {"remote": ip_address("224.0.0.1")},
        {"local_nets": ()},
        {"remote_nets": [ip_network("fd00::/64")]},
        {"mode": Mode.TRANSPORT},
        {"names": ("same", "same")},
        {"names": ("../escape", "b")},
        {"names": ("a", "b/c")},
        {"remote_settings": {"no_such_field": 1}},
        {"remote_settings": {"port": 0}},
    ],
)
def test_an_invalid_pair_leaves_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(EspGwError) as caught:
        make(tmp_path / "x" / "y", **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(1, 7))
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
        make(tmp_path / "out")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EspGwError):
        make(tmp_path / "file" / "out")
    with pytest.raises(EspGwError):
        make(tmp_path / "a\0b")
