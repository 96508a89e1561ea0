"""The plugin in Debian 13's charon, whose structures are others; its peer is the one here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import init_ike
from tests.support.charon import (
    Charon,
    Installation,
    build_plugin,
    debian_13,
    of_debian_13,
    with_ml,
)
from tests.support.evidence import trial
from tests.support.ike_rig import NETWORKS, End, await_child, configure, mirrored, start, two_ends
from tests.support.ike_sites import (
    Site,
    encapsulations,
    initiate,
    replace_child_under_pings,
    start_sites,
)
from tests.support.init_ike import by_command, make_ends, target
from tests.support.labtools import MakePair, until


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> list[Installation]:
    folders: list[Path] = [tmp_path_factory.mktemp(name) for name in ("here", "debian13")]
    return [build_plugin(folders[0]), debian_13(folders[1])]


@pytest.fixture
def ends(installed: list[Installation]) -> Iterator[list[End]]:
    with two_ends(*installed) as ends:
        for end in ends:
            end.charon.settings = {"delete_rekeyed_delay": 1}
        yield ends


@pytest.mark.parametrize("initiator", [0, 1])
def test_children_live_with_another_version(ends: list[End], initiator: int) -> None:
    # In UDP: IKE comes by the relay and by a socket of the plugin.
    configure(ends, of_connection={"encap": "yes"}, start_action="trap")
    start(*ends)
    assert "6.0.1" in ends[1].charon.swanctl("--version", "--daemon").stdout
    one, two = ends[initiator], ends[1 - initiator]
    packet = {"local": "10.1.0.5", "remote": "10.2.0.7"}
    if initiator:
        packet = {"local": packet["remote"], "remote": packet["local"]}
    ports = {"protocol": 17, "local_port": 5, "remote_port": 7}
    one.owner.event("Acquire", policy=one.policy()["id"], **packet, **ports)
    for end in ends:
        await_child(end)
    for rekeying in ends:
        before = [set(end.owner.sas) for end in ends]
        rekeying.charon.swanctl("--rekey", "--child", "net")
        for end, former in zip(ends, before, strict=True):
            until(lambda end=end, former=former: not former & set(end.owner.sas), "a rekey")
            await_child(end)
    assert set(mirrored(one.sa("outbound"), two.sa("inbound"))) <= {
        *("direction", "child", "keepalive")
    }
    assert one.sa("outbound")["encapsulation"] == "udp"
    for name in one.owner.sas:
        one.owner.counters[name] = {"bytes": 700, "packets": 7, "last_use_s": 3}
    listed = one.charon.swanctl("--list-sas", "--raw").stdout
    assert "packets-out=7" in listed and "packets-in=7" in listed
    one.owner.stop()
    one.owner.start()
    until(lambda: len(one.owner.calls("OpenSession")) == 2, "the next session")
    until(lambda: one.charon.log.read_text().count("share port") == 2, "the next socket")
    one.charon.swanctl("--terminate", "--ike", "peer")
    for end in ends:
        until(lambda end=end: not end.owner.sas, "the SAs are gone")
        assert end.owner.protected() == {NETWORKS[1 - end.number]: None}
        assert end.charon.stop() == 0
        assert end.owner.protected() == {NETWORKS[1 - end.number]: None}


@trial(
    of_debian_13,
    "tunnel, IPv4 in IPv4, ESP in UDP, ESN, PSK, MOBIKE",
    "the child rekeyed from both ends under pings, none lost; SIGKILL of the gateway",
)
def test_a_child_in_udp_between_two_versions_outlives_a_kill_of_the_gateway(
    make_pair: MakePair,
    installed: list[Installation],
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> None:
    here, debian13 = installed
    in_udp = {"encap": "yes", "mobike": "yes"}
    sites = start_sites(make_pair(), tmp_path, (here, debian13), stack, in_udp)
    initiate(sites)
    replace_child_under_pings(sites)
    newer = sites[1]
    newer.gateway.kill()
    newer.gateway.start()
    until(lambda: newer.charon.log.read_text().count("share port 4500") == 2, "the next socket")
    replace_child_under_pings(sites)
    assert encapsulations(newer) == {"udp"}
    assert newer.charon.stop() == 0


def count_kems(site: Site) -> int:
    return site.charon.swanctl("--list-sas", "--raw").stdout.count("ML_KEM_768")


@trial(
    of_debian_13,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK, ML-KEM-768 beside x25519",
    "the child rekeyed from both ends under pings, none lost",
)
def test_keys_of_a_child_come_from_ml_kem_too(
    make_pair_of_one_engine: MakePair,
    installed: list[Installation],
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> None:
    debian13 = with_ml(installed[1])
    kem = "x25519-ke1_mlkem768"
    sites = start_sites(
        make_pair_of_one_engine(),
        tmp_path,
        (debian13, debian13),
        stack,
        {"proposals": f"aes256gcm16-prfsha256-{kem}"},
        esp_proposals=f"aes256gcm16-{kem}-esn",
    )
    initiate(sites)
    # The first child has its keys of IKE's exchange, later ones of their own.
    replace_child_under_pings(sites)
    for site in sites:
        # A child that was replaced is listed for some time.
        until(lambda site=site: count_kems(site) == 2, "one child with ML-KEM beside the IKE_SA's")


def replace_charon(end: init_ike.End, folder: Path, installed: Installation) -> None:
    """Give an end another charon, with the same files."""
    folder.mkdir()
    charon = Charon(end.gateway.namespace, folder, installed, end.gateway.socket)
    charon.swanctl_dir = end.swanctl
    end.charon = charon


@trial(
    of_debian_13,
    "as `init --ike --certificates` makes it, ECDSA",
    "the first packet brings the tunnel",
)
@pytest.mark.parametrize("initiator", [0, 1])
def test_both_versions_read_what_init_has_written(
    installed: list[Installation], tmp_path: Path, stack: contextlib.ExitStack, initiator: int
) -> None:
    here, debian13 = installed
    pair, ends = make_ends(tmp_path, here, stack, by_command("--certificates"))
    replace_charon(ends[1], tmp_path / "newer", debian13)
    stack.callback(ends[1].charon.close)
    init_ike.start(pair, ends)
    until(lambda: ends[initiator].reaches(target(pair, 1 - initiator)), "the tunnel carries", 20)
    assert [end.children()[0]["peer"] for end in ends] == ["pi-b", "pi-a"]


@trial(
    of_debian_13,
    "as `init --ike` makes it, its lines for ML-KEM in use, peer {peer}",
    "the first packet brings the tunnel",
)
@pytest.mark.parametrize("peer", ["of the same version", "older"])
def test_the_comment_lines_of_init_are_for_ml_kem(
    installed: list[Installation], tmp_path: Path, stack: contextlib.ExitStack, peer: str
) -> None:
    here, debian13 = installed[0], with_ml(installed[1])
    pair, ends = make_ends(tmp_path, here, stack, by_command())
    newer = ends[1:] if peer == "older" else ends
    for end in newer:
        (conf,) = (path for path in (end.swanctl / "conf.d").iterdir() if "ke1" in path.read_text())
        without = re.sub(r"^ *(esp_)?proposals = .*\n", "", conf.read_text(), flags=re.MULTILINE)
        conf.write_text(without.replace("# proposals", "proposals").replace("# esp_", "esp_"))
        replace_charon(end, tmp_path / f"newer-{end.gateway.namespace.name}", debian13)
        stack.callback(end.charon.close)
    init_ike.start(pair, ends)
    until(lambda: ends[1].reaches(target(pair, 0)), "the tunnel carries", 20)
    listed = ends[1].charon.swanctl("--list-sas", "--raw").stdout
    assert ("ML_KEM_768" in listed) == (peer != "older")
