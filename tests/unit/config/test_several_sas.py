"""A tunnel of several SAs: its expansion, its faults, and the SA that each flow takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Raw

from esp_gw.config import offer, provision
from esp_gw.config.keyfile import format_keymat, generate
from esp_gw.config.load import load_config
from esp_gw.daemon.reconcile import (
    InstallSa,
    Observed,
    RemoveSa,
    ReplacePolicies,
    RetireSa,
    outer_sockets,
    reconcile,
)
from esp_gw.desired import Desired
from esp_gw.engine.base import HardExpired
from esp_gw.engine.python.sad import OutboundState
from esp_gw.engine.python.wire import flow_key, spread
from esp_gw.model import DEFAULT_SUITE, Direction, DropReason, KeyMaterial
from esp_gw.network.objects import Host
from esp_gw.network.plan import plan_network
from tests.support import config_files
from tests.support.config_files import load, only_fault, replace_key_file, write_keys
from tests.support.rig import HEADS, V4, V6, Pair, Sent, packet, pair

TUNNEL = config_files.TUNNEL.replace("    outbound:", "    sas: 3\n    outbound:").replace(
    "4098", "0x2001"
)


def keys(folder: Path, out: int = 3, in_: int = 3) -> dict[str, list[KeyMaterial]]:
    return write_keys(folder, out, in_)


def test_spis_keys_and_pairs_follow_one_another(tmp_path: Path) -> None:
    made = keys(tmp_path)
    desired = load(tmp_path, TUNNEL)
    outbound = [sa for sa in desired.sas if sa.direction is Direction.OUTBOUND]
    inbound = [sa for sa in desired.sas if sa.direction is Direction.INBOUND]
    assert [sa.name for sa in outbound] == ["b/out", "b/out.2", "b/out.3"]
    assert [sa.name for sa in inbound] == ["b/in", "b/in.2", "b/in.3"]
    assert [sa.spi for sa in outbound] == [0x1001, 0x1002, 0x1003]
    assert [sa.spi for sa in inbound] == [0x2001, 0x2002, 0x2003]
    assert [sa.keymat for sa in outbound] == made["b.out"]
    assert [sa.keymat for sa in inbound] == made["b.in"]
    for out, in_ in zip(outbound, inbound, strict=True):
        assert (out.pair, in_.pair) == (in_.name, out.name)
    assert [sa.lane for sa in outbound] == [sa.lane for sa in inbound] == [0, 1, 2]
    (policy,) = desired.policies
    assert policy.sas == tuple(sa.name for sa in outbound)
    assert set(desired.tunnels[0].sas) == {sa.name for sa in desired.sas}


@pytest.mark.parametrize("kind", ["keepalive", "liveness"])
def test_one_sa_sends_the_keepalives_of_a_tunnel(tmp_path: Path, kind: str) -> None:
    keys(tmp_path)
    desired = load(tmp_path, TUNNEL + f"    {kind}: 7\n")
    outbound = [sa for sa in desired.sas if sa.direction is Direction.OUTBOUND]
    assert [getattr(sa, kind) for sa in outbound] == [7, 0, 0]


def test_a_credential_holds_the_keys_of_all_sas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "keys"))
    text = TUNNEL.replace("file: keys/", "credential: ")
    assert load(tmp_path, text).sas == load(tmp_path, TUNNEL).sas


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_wrong_number_of_keys_is_reported_with_a_hint(tmp_path: Path, count: int) -> None:
    keys(tmp_path, in_=count)
    text = only_fault(tmp_path, TUNNEL)
    assert text.startswith("gw.yaml:9: tunnels.b.inbound.key.file: ")
    assert "b.in.key" in text
    assert "3 are needed" in text
    assert "esp-gw keygen --sas 3" in text


def test_surplus_keys_are_reported_with_a_hint(tmp_path: Path) -> None:
    keys(tmp_path, out=2, in_=1)
    text = only_fault(tmp_path, TUNNEL.replace("    sas: 3\n", ""))
    assert text.startswith("gw.yaml:7: tunnels.b.outbound.key.file: ")
    assert "has 2 lines of hex, one is needed" in text
    assert "set sas: 2" in text


def test_a_key_of_the_wrong_size_is_reported_with_its_line(tmp_path: Path) -> None:
    made = keys(tmp_path)["b.out"]
    lines = ["# comment", format_keymat(made[0]), "", format_keymat(made[1])[:-8], "ab" * 36]
    (tmp_path / "keys" / "b.out.key").write_text("\n".join(lines))
    text = only_fault(tmp_path, TUNNEL)
    assert "b.out.key, line 4: the key has 64 hex digits" in text
    assert lines[1][:8] not in text
    assert lines[3][:8] not in text


def test_one_key_for_two_sas_of_a_tunnel_is_refused(tmp_path: Path) -> None:
    made = keys(tmp_path)["b.out"]
    lines = [format_keymat(keymat) for keymat in (made[0], made[1], made[0])]
    (tmp_path / "keys" / "b.out.key").write_text("\n".join(lines))
    text = only_fault(tmp_path, TUNNEL)
    assert text.startswith(
        "gw.yaml:8: tunnels.b.outbound: has the same key as b/out (two outbound)"
    )


def test_an_inline_key_is_one_key(tmp_path: Path) -> None:
    keys(tmp_path)
    key = format_keymat(generate(DEFAULT_SUITE))
    text = TUNNEL.replace("file: keys/b.out.key", f"inline: {key}")
    text = only_fault(tmp_path, text + "gateway: {allow_inline_keys: true}\n")
    assert text.startswith("gw.yaml:8: tunnels.b.outbound.key.inline: holds one key")
    assert "use a key file" in text
    assert key[:8] not in text


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("sas: 3", "sas: 0", "7: tunnels.b.sas: expected a number from 1 to 64"),
        ("sas: 3", "sas: 65", "7: tunnels.b.sas: expected a number from 1 to 64"),
        ("sas: 3", "sas: many", "7: tunnels.b.sas: expected a number from 1 to 64"),
        (
            "0x2001",
            "0xfffffffe",
            "9: tunnels.b.inbound: spi: 3 SAs need the SPIs from 0xfffffffe on",
        ),
    ],
)
def test_an_impossible_value_is_reported_with_its_place(
    tmp_path: Path, old: str, new: str, start: str
) -> None:
    keys(tmp_path)
    assert only_fault(tmp_path, TUNNEL.replace(old, new)).startswith(f"gw.yaml:{start}")


def test_the_highest_spi_can_be_used(tmp_path: Path) -> None:
    keys(tmp_path)
    desired = load(tmp_path, TUNNEL.replace("0x2001", "0xfffffffd"))
    assert max(sa.spi for sa in desired.sas) == 0xFFFFFFFF


def test_the_spis_of_two_tunnels_must_not_overlap(tmp_path: Path) -> None:
    keys(tmp_path)
    write_keys(tmp_path, tunnel="c")
    second = TUNNEL.replace("tunnels:\n  b:", "  c:").replace("    sas: 3\n", "")
    second = (
        second.replace("/b.", "/c.").replace("10.2.0.0", "10.3.0.0").replace("0x1001", "0x3001")
    )
    text = only_fault(tmp_path, TUNNEL + second.replace("0x2001", "0x2003"))
    assert text.startswith(
        "gw.yaml:16: tunnels.c.inbound: SPI 0x2003 is already used by the inbound SA b/in.3"
    )


@pytest.mark.parametrize("count", [1, 4, 64])
def test_init_makes_two_ends_of_as_many_sas(tmp_path: Path, count: int) -> None:
    made = provision.make_pair(
        tmp_path,
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        local_nets=[ip_network("10.1.0.0/24")],
        remote_nets=[ip_network("10.2.0.0/24")],
        sas=count,
    )
    a, b = load_config(made.local), load_config(made.remote)
    for one, other in ((a, b), (b, a)):
        sent = [(s.spi, s.keymat) for s in one.sas if s.direction is Direction.OUTBOUND]
        taken = [(s.spi, s.keymat) for s in other.sas if s.direction is Direction.INBOUND]
        assert sent == taken
        assert len(sent) == count
    assert len({sa.spi for sa in a.sas}) == len({sa.keymat.to_bytes() for sa in a.sas}) == 2 * count


def test_spis_are_drawn_again_if_the_two_directions_would_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = iter([1000, 1003, 1000, 1004])
    monkeypatch.setattr(offer.secrets, "randbelow", lambda limit: next(drawn))
    assert offer._random_spis(4) == (1256, 1260)
    drawn = iter([-1, 0])
    monkeypatch.setattr(offer.secrets, "randbelow", lambda limit: next(drawn) % limit)
    assert offer._random_spis(4) == (2**32 - 4, 256)


def changes(before: Desired, after: Desired) -> list[str]:
    sas = {sa.name: sa for sa in before.sas}
    there = plan_network(before, {}, Host())
    observed = Observed(sas, before.policies, outer_sockets(before), there)
    found = []
    for change in reconcile(after, plan_network(after, {}, Host()), observed):
        match change:
            case InstallSa(sa, None, None):
                found.append(f"install {sa.name}")
            case InstallSa(sa, moves, None) if moves == sa.name:
                found.append(f"change {sa.name}")
            case RemoveSa(name):
                found.append(f"remove {name}")
            case RetireSa(sa):
                found.append(f"retire {sa.name}")
            case ReplacePolicies():
                found.append("policies")
            case _:
                found.append(str(change))
    return found


def test_an_sa_without_sisters_has_no_lane(tmp_path: Path) -> None:
    keys(tmp_path, 1, 1)
    desired = load(tmp_path, TUNNEL.replace("sas: 3", "sas: 1"))
    assert [sa.lane for sa in desired.sas] == [None, None]


def test_another_number_of_sas_keeps_key_and_numbers_of_those_that_remain(tmp_path: Path) -> None:
    made = keys(tmp_path)
    three = load(tmp_path, TUNNEL)
    for name, keymats in made.items():
        replace_key_file(tmp_path, name, keymats[:2])
    two = load(tmp_path, TUNNEL.replace("sas: 3", "sas: 2"))
    for name, keymats in made.items():
        replace_key_file(tmp_path, name, keymats[:1])
    one = load(tmp_path, TUNNEL.replace("sas: 3", "sas: 1"))
    assert changes(one, three) == [
        *("change b/in", "install b/in.2", "install b/in.3"),
        *("change b/out", "install b/out.2", "install b/out.3"),
        "policies",
    ]
    first = ["change b/in", "change b/out"]
    assert changes(three, one) == [
        *(*first, "policies", "retire b/in.2", "retire b/in.3"),
        *("remove b/out.2", "remove b/out.3"),
    ]
    # With sisters at both times the first one isn't touched.
    assert changes(two, three) == ["install b/in.3", "install b/out.3", "policies"]
    assert changes(three, two) == ["policies", "retire b/in.3", "remove b/out.3"]


@pytest.fixture
def four() -> Iterator[tuple[Pair, list[OutboundState]]]:
    """A pair of gateways whose policy at a has four SAs."""
    with pair(V4, V6) as gateways:
        first = gateways.a_out.sa
        states = [gateways.a_out]
        for number in (2, 3, 4):
            sa = replace(first, name=f"ab.{number}", spi=first.spi + 0x1000 * number)
            states.append(gateways.a.install_outbound(sa))
        sas = tuple(state.sa.name for state in states)
        gateways.a.outbound.replace_policies([replace(gateways.policy, sas=sas)])
        yield gateways, states


def spis(sent: Sequence[Sent]) -> list[int]:
    return [int.from_bytes(each.packet[:4]) for each in sent]


@pytest.mark.parametrize("version", [4, 6])
def test_sparse_flows_have_lane_0_and_bulk_ones_all_the_others(
    four: tuple[Pair, list[OutboundState]], version: int
) -> None:
    gateways, states = four
    taken = set()
    for port in range(100):
        octets = packet(HEADS[version], bytes(1000), sport=port)
        first, *_, last = spis(gateways.a.forward(*[octets] * 40))
        key = flow_key(memoryview(octets))
        assert key is not None
        assert first == states[0].sa.spi
        assert last == states[1 + spread(key) % 3].sa.spi
        taken.add(last)
    assert taken == {state.sa.spi for state in states[1:]}


def test_a_bulk_flow_is_sparse_again_after_a_pause(
    four: tuple[Pair, list[OutboundState]],
) -> None:
    gateways, states = four
    octets = packet(HEADS[4], bytes(1000))
    assert spis(gateways.a.forward(*[octets] * 40))[-1] != states[0].sa.spi
    gateways.a.loop.advance(5)
    assert spis(gateways.a.forward(octets)) == [states[0].sa.spi]


def test_fragments_of_a_packet_have_one_sa_whatever_its_ports(
    four: tuple[Pair, list[OutboundState]],
) -> None:
    gateways, _ = four
    taken = set()
    for port in range(5):
        whole = IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=port, dport=7) / Raw(bytes(3000))
        sent = gateways.a.forward(*map(bytes, fragment(whole, fragsize=1000)))
        assert len(sent) == 4
        taken |= set(spis(sent))
    assert len(taken) == 1


@pytest.mark.parametrize("heard", [0, 1, 3])
def test_a_flow_that_comes_by_a_bulk_lane_answers_by_one(
    four: tuple[Pair, list[OutboundState]], heard: int
) -> None:
    gateways, states = four
    inbound = replace(gateways.a_in.sa, spi=0x9000, name="by-lane", lane=heard)
    gateways.a.install_inbound(inbound)
    gateways.b.install_outbound(
        replace(gateways.b_out.sa, name="ba", spi=0x9000, keymat=inbound.keymat)
    )
    back = packet(HEADS[4].__class__(src="10.2.0.1", dst="10.1.0.1"), sport=2000, dport=1000)
    assert len(gateways.b_to_a(back)) == 1
    (spi,) = spis(gateways.a.forward(packet(HEADS[4], sport=1000, dport=2000)))
    assert (spi == states[0].sa.spi) == (heard == 0)


def test_a_missing_sa_is_passed_over_and_none_at_all_is_counted(
    four: tuple[Pair, list[OutboundState]],
) -> None:
    gateways, states = four
    packets = [packet(sport=port) for port in range(20)]
    for gone, carrier in zip(states, [*states[1:], None], strict=True):
        assert set(spis(gateways.a.forward(*packets))) == {gone.sa.spi}
        del gateways.a.outbound.sas[gone.sa.name]
        gateways.a.outbound.forget_flows()
        sent = spis(gateways.a.forward(*packets))
        assert sent == ([carrier.sa.spi] * 20 if carrier else [])
    assert gateways.a.drops_out() == {DropReason.NO_SA: 20}


def test_an_exhausted_sa_is_reported_once_and_its_flows_lose_nothing(
    four: tuple[Pair, list[OutboundState]],
) -> None:
    gateways, states = four
    octets = packet(HEADS[4], bytes(1000))
    own = spis(gateways.a.forward(*[octets] * 40))[-1]
    number = next(n for n, state in enumerate(states) if state.sa.spi == own)
    end_numbers_of(states[number])
    after = states[1 + number % 3]
    assert set(spis(gateways.a.forward(*[octets] * 3))) == {after.sa.spi}
    expired = [event for event in gateways.a.events if isinstance(event, HardExpired)]
    assert expired == [HardExpired(states[number].sa.name)]
    for state in states:
        end_numbers_of(state)
    assert gateways.a.forward(octets, octets) == []
    assert gateways.a.drops_out() == {DropReason.SEQ_EXHAUSTED: 2}


def end_numbers_of(state: OutboundState) -> None:
    """Use all sequence numbers of an SA."""
    state.esp.next_seq = state.esp.lease_end = state.sa.last_seq + 1
