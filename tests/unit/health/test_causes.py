"""Each common mistake shows as its own likely cause, and goes with it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from esp_gw.engine.base import Opening
from esp_gw.health.causes import Kind
from esp_gw.health.tracker import FADE, UNANSWERED
from esp_gw.model import DEFAULT_SUITE, Direction, DropReason, Encapsulation, Mode, Tunnel
from esp_gw.network.icmp import Unreachable, What
from tests.support.tunnel_life import OUT, TunnelLife, inner, outer

AWHILE = 8


def icmp(what: What, protocol: int = 17, port: int = 4500, source: str = "") -> Unreachable:
    where = ip_address(source) if source else OUT.remote
    return Unreachable(where, what, OUT.local, OUT.remote, protocol, port, OUT.spi)


def test_packets_that_never_authenticate_have_another_key_suite_or_esn() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(sent=1, drops={DropReason.AUTH_FAILED: 1})
    assert (life.state, life.kinds) == ("failing", [Kind.KEY])
    assert "ESN" in life.text


def test_packets_that_no_longer_authenticate_have_a_new_key() -> None:
    life = TunnelLife()
    life.second(delivered=5)
    for _ in range(AWHILE):
        life.second(drops={DropReason.AUTH_FAILED: 1})
    assert (life.state, life.kinds) == ("failing", [Kind.NEW_KEY])


def test_used_sequence_numbers_are_a_restart_or_a_replay() -> None:
    life = TunnelLife()
    life.second(delivered=5)
    for _ in range(AWHILE):
        life.second(drops={DropReason.REPLAY_OLD: 3, DropReason.REPLAY_DUPLICATE: 1})
    assert (life.state, life.kinds) == ("failing", [Kind.REPLAY])


def test_our_own_outbound_spi_from_the_peer_is_swapped() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(refused=[outer(DropReason.UNKNOWN_SPI, OUT.spi)])
    assert (life.state, life.kinds) == ("failing", [Kind.SWAPPED_SPIS])
    assert f"0x{OUT.spi:08x}" in life.text


def test_foreign_spis_of_the_peer_are_named_up_to_eight() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(refused=[outer(DropReason.UNKNOWN_SPI, 0x9000 + spi) for spi in range(20)])
    assert (life.state, life.kinds) == ("failing", [Kind.FOREIGN_SPI])
    assert life.text.count("0x") == 8


def test_foreign_spis_of_others_say_nothing_of_the_tunnel() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        elsewhere = ip_address("198.51.100.7")
        life.second(refused=[outer(DropReason.UNKNOWN_SPI, 0x9000, elsewhere)])
    assert (life.state, life.kinds) == ("quiet", [])


def test_esp_in_the_other_form_is_the_encapsulation() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(drops={DropReason.WRONG_ENCAPSULATION: 1})
    assert (life.state, life.kinds) == ("failing", [Kind.ENCAPSULATION])
    assert "probably none" in life.text


@pytest.mark.parametrize(
    ("what", "encapsulation", "words"),
    [
        (What.PORT, Encapsulation.UDP, "UDP port 4500"),
        (What.PROTOCOL, Encapsulation.NONE, "'encapsulation' is udp"),
        (What.PROHIBITED, Encapsulation.UDP, "firewall"),
        (What.HOST, Encapsulation.UDP, "host unreachable"),
    ],
)
def test_an_icmp_error_on_our_packets_is_the_cause_while_nothing_comes(
    what: What, encapsulation: Encapsulation, words: str
) -> None:
    life = TunnelLife(encapsulation=encapsulation)
    udp = encapsulation is Encapsulation.UDP
    error = icmp(what, 17 if udp else 50, 4500 if udp else 0)
    life.second(sent=1, unreachable=[error])
    assert life.kinds == [], "a single one may come before the peer has passed its NAT"
    life.second(sent=1, unreachable=[error], seconds=2)
    assert life.kinds == [Kind.UNREACHABLE]
    assert words in life.text


def test_a_forged_icmp_error_says_nothing_of_a_tunnel_that_is_up() -> None:
    life = TunnelLife()
    life.second(delivered=1)
    life.second(unreachable=[icmp(What.PORT)])
    assert (life.state, life.kinds) == ("up", [])


def test_an_icmp_error_that_quotes_no_spi_of_ours_is_not_believed() -> None:
    for spi in (None, OUT.spi + 1):
        life = TunnelLife()
        for _ in range(AWHILE):
            life.second(sent=1, unreachable=[replace(icmp(What.PORT), spi=spi)])
        assert life.kinds == []


def test_port_unreachable_on_protocol_50_is_a_firewall() -> None:
    life = TunnelLife(encapsulation=Encapsulation.NONE)
    for _ in range(AWHILE):
        life.second(sent=1, unreachable=[icmp(What.PORT, 50, 0)])
    assert "rejects ESP, IP protocol 50" in life.text


def test_an_icmp_error_on_other_packets_is_not_ours() -> None:
    life = TunnelLife()
    life.second(unreachable=[icmp(What.PORT, port=4501), icmp(What.PROTOCOL, protocol=50, port=0)])
    life.second(unreachable=[replace(icmp(What.PORT), local=ip_address("198.51.100.1"))])
    assert life.kinds == []


def test_inner_packets_that_the_sa_may_not_carry_are_named() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        sample = inner(DropReason.SELECTOR_MISMATCH, "10.9.0.1", "10.1.0.1", "t/in")
        life.second(drops={DropReason.SELECTOR_MISMATCH: 1}, refused=[sample])
    assert (life.state, life.kinds) == ("failing", [Kind.SELECTORS_IN])
    assert "10.9.0.1 to 10.1.0.1" in life.text


def test_transport_mode_against_tunnel_mode_shows_as_the_mode() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(drops={DropReason.BAD_NEXT_HEADER: 1})
    assert (life.state, life.kinds) == ("failing", [Kind.MODE])


def test_a_source_outside_local_ts_is_named_beside_traffic_that_flows() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        sample = inner(DropReason.NO_POLICY, "172.17.0.2", "10.2.0.1")
        life.second(sent=5, delivered=5, refused=[sample])
    assert (life.state, life.kinds) == ("up", [Kind.SOURCE])
    assert "172.17.0.2 to 10.2.0.1" in life.text
    for _ in range(int(FADE) + 1):
        life.second(sent=5, delivered=5)
    assert life.kinds == []


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (DropReason.SEND_ERROR, Kind.SENDING),
        (DropReason.TOO_BIG, Kind.MTU),
        (DropReason.LEASE_EXHAUSTED, Kind.SEQUENCE_NUMBERS),
        (DropReason.SEQ_EXHAUSTED, Kind.SEQUENCE_NUMBERS),
        (DropReason.SELECTOR_MISMATCH, Kind.SELECTORS_OUT),
        (DropReason.QUEUE_TIMEOUT, Kind.OTHER),
    ],
)
def test_a_tunnel_none_of_whose_packets_leave_is_failing(reason: DropReason, kind: Kind) -> None:
    life = TunnelLife()
    life.second(sent=1, delivered=1)
    for _ in range(AWHILE):
        life.second(out={reason: 2})
    assert (life.state, life.kinds) == ("failing", [kind])


def test_a_local_address_on_no_interface_is_the_first_cause() -> None:
    life = TunnelLife()
    life.host = frozenset({ip_address("198.51.100.1")})
    for _ in range(AWHILE):
        life.second(out={DropReason.SEND_ERROR: 1})
    assert life.state == "failing"
    assert life.kinds[0] == Kind.LOCAL_ADDRESS_GONE


def test_a_peer_that_should_send_keepalives_and_does_not_is_down() -> None:
    life = TunnelLife(liveness=10)
    life.second(seconds=29)
    assert life.state == "quiet"
    life.second(seconds=2)
    assert (life.state, life.kinds) == ("down", [Kind.SILENT])
    life.second(drops={DropReason.DUMMY: 1})
    assert (life.state, life.kinds) == ("up", [])


def test_a_peer_that_may_be_anywhere_has_no_address_in_a_sentence() -> None:
    life = TunnelLife(remote=ip_address("0.0.0.0"))
    for _ in range(AWHILE):
        life.second(drops={DropReason.AUTH_FAILED: 1})
    assert (life.state, life.kinds) == ("failing", [Kind.KEY])
    assert "no packet of its peer is authentic" in life.text


def test_a_peer_that_is_heard_and_not_learned_is_named_and_no_host_behind() -> None:
    life = TunnelLife(remote=ip_address("0.0.0.0"))
    asked = Opening("t/in", ip_address("10.2.0.1"), ip_address("10.1.0.7"), 1, 0)
    for _ in range(int(UNANSWERED) + AWHILE):
        life.second(delivered=1, openings=[asked])
    assert (life.state, life.kinds) == ("up", [Kind.UNLEARNED])


def test_a_peer_that_may_be_anywhere_and_never_came_has_to_send_first() -> None:
    life = TunnelLife(liveness=10, remote=ip_address("0.0.0.0"))
    life.second(seconds=29)
    assert (life.state, life.kinds) == ("quiet", [])
    life.second(seconds=2)
    assert (life.state, life.kinds) == ("down", [Kind.SILENT])
    assert f"has to send first, to {OUT.local}" in life.text
    assert "0.0.0.0" not in life.text


def test_a_peer_heard_to_send_keepalives_is_down_without_them() -> None:
    life = TunnelLife()
    for _ in range(5):
        life.second(drops={DropReason.DUMMY: 1}, seconds=10)
    life.second(seconds=29)
    assert life.state == "up"
    life.second(seconds=2)
    assert life.state == "down"


def test_both_ends_behind_a_nat_are_suspected_if_nothing_ever_came() -> None:
    local, remote = ip_address("192.168.1.2"), ip_address("203.0.113.9")
    life = TunnelLife(liveness=10, local=local, remote=remote)
    life.second(seconds=31)
    assert life.kinds == [Kind.BOTH_BEHIND_NAT, Kind.SILENT]
    life.second(drops={DropReason.DUMMY: 1})
    life.second(seconds=31)
    assert life.kinds == [Kind.SILENT]


def unanswered(chain: str | None = None, *, here: bool = False) -> TunnelLife:
    life = TunnelLife()
    host = ip_address("10.1.0.7")
    life.chains = {4: chain}
    if here:
        life.host |= {host}
    life.second(delivered=1, openings=[Opening("t/in", ip_address("10.2.0.1"), host, 1, 0)])
    for _ in range(int(UNANSWERED)):
        life.second(delivered=1)
    return life


def test_requests_without_an_answer_have_no_way_back() -> None:
    life = unanswered()
    assert (life.state, life.kinds) == ("up", [Kind.NO_WAY_BACK])
    assert "10.1.0.7" in life.text
    life.second(sent=1, delivered=1)
    assert life.kinds == []


def test_a_forward_chain_that_drops_is_named_first() -> None:
    life = unanswered("chain FORWARD of table ip filter")
    assert life.kinds == [Kind.FORWARDING, Kind.NO_WAY_BACK]
    assert "chain FORWARD" in life.text


def test_requests_to_this_host_are_not_forwarded() -> None:
    life = unanswered("chain FORWARD of table ip filter", here=True)
    assert life.kinds == [Kind.NO_WAY_BACK]
    assert "firewall of this host" in life.text


def test_a_one_way_flow_is_no_fault() -> None:
    life = TunnelLife()
    for _ in range(60):
        life.second(delivered=100)
    assert (life.state, life.kinds) == ("up", [])


def test_a_mended_tunnel_has_no_cause() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(drops={DropReason.AUTH_FAILED: 1})
    assert life.state == "failing"
    life.second(delivered=1)
    assert (life.state, life.kinds) == ("up", [])


def test_a_quiet_failure_fades() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(drops={DropReason.AUTH_FAILED: 1})
    life.second(seconds=FADE + 1)
    assert (life.state, life.kinds) == ("quiet", [])


def test_of_two_tunnels_with_one_peer_foreign_spis_belong_to_the_one_that_never_worked() -> None:
    life = TunnelLife()
    other = replace(OUT, name="u/out", spi=0x2001, pair="u/in")
    other_in = replace(life.inbound, name="u/in", spi=0x2002, pair="u/out")
    life.desired = replace(life.desired, sas=(*life.desired.sas, other, other_in))
    life.second(delivered=1)
    for _ in range(AWHILE):
        life.second(refused=[outer(DropReason.UNKNOWN_SPI, 0x9000)])
    assert life.state == "up"
    assert life.roster.tunnels["u/out"].state == "failing"


def several(count: int) -> TunnelLife:
    """Return the life of a tunnel with further SAs, of which only the first has traffic."""
    life = TunnelLife()
    more = [
        replace(sa, name=f"{sa.name}.{n}", spi=sa.spi + 0x1000 * n, tunnel="t")
        for n in range(1, count)
        for sa in (life.out, life.inbound)
    ]
    life.next = {sa.name: 1 for sa in more if sa.direction is Direction.OUTBOUND}
    sas = (replace(life.out, tunnel="t"), replace(life.inbound, tunnel="t"), *more)
    tunnel = Tunnel(
        *("t", Mode.TUNNEL, Encapsulation.UDP, DEFAULT_SUITE, OUT.local, OUT.remote, (), ()),
        tuple(sa.name for sa in sas),
        ("t",),
    )
    life.desired = replace(life.desired, sas=sas, tunnels=(tunnel,))
    life.look()
    return life


def test_one_sa_of_several_that_loses_everything_is_named_beside_traffic() -> None:
    life = several(2)
    for _ in range(AWHILE):
        life.more["t/in.1"].update({DropReason.AUTH_FAILED: 5})
        life.second(sent=5, delivered=5)
    watched = life.roster.tunnels["t"]
    assert watched.state == "up"
    assert [cause.kind for cause in watched.causes] == [Kind.ONE_SA]
    assert "its SA t/in.1 loses every packet" in watched.causes[0].text


def laned(count: int) -> TunnelLife:
    """Return the life of a tunnel with several outbound SAs without ESN, all installed."""
    life = TunnelLife()
    lanes = [
        replace(life.out, name=f"t/out.{n}", spi=life.out.spi + n, tunnel="t", lane=n, esn=False)
        for n in range(count)
    ]
    sas = [sa for out in lanes for sa in (out, replace(life.inbound, name=f"in {out.name}"))]
    tunnel = Tunnel(
        *("t", Mode.TUNNEL, Encapsulation.UDP, DEFAULT_SUITE, OUT.local, OUT.remote, (), ()),
        tuple(sa.name for sa in sas),
        ("t",),
    )
    life.desired = replace(life.desired, sas=tuple(sas), tunnels=(tunnel,))
    life.next = {sa.name: 7 for sa in lanes}
    life.look()
    return life


def test_announced_lanes_promise_no_keepalives() -> None:
    life = laned(2)
    for _ in range(5):
        life.more["in t/out.1"].update({DropReason.DUMMY: 1})
        life.second()
    assert life.roster.tunnels["t"].state == "up"
    for _ in range(100):
        life.second()
    assert life.roster.tunnels["t"].state == "quiet"
    assert life.roster.tunnels["t"].causes == ()


def test_a_lane_that_carries_nothing_is_named_while_another_works() -> None:
    life = laned(4)
    tunnel = life.roster.tunnels["t"]
    life.next["t/out.3"] = 2**32 - 1
    life.second()
    assert tunnel.causes == (), "it has a number left"
    life.next["t/out.3"] = 2**32
    life.second()
    (cause,) = tunnel.causes
    assert (tunnel.state, cause.kind) == ("quiet", Kind.LANE)
    assert cause.text == (
        "lane 3 carries nothing: its SA t/out.3 has used its last sequence number; "
        "give it a new key"
    )
    del life.next["t/out.0"]
    life.second()
    (cause,) = tunnel.causes
    assert cause.text.startswith("lane 0 carries nothing: its SA t/out.0 is not installed; lane 3 ")
    life.next["t/out.0"] = 7
    left_out = [sa for sa in life.desired.sas if sa.name != "t/out.1"]
    life.desired = replace(life.desired, sas=tuple(left_out))
    life.second()
    (cause,) = life.roster.tunnels["t"].causes
    assert cause.text.startswith("lane 1 carries nothing: its SA t/out.1 has used its last seq")
    life.next |= {f"t/out.{n}": 2**32 for n in range(4)}
    life.second()
    assert life.roster.tunnels["t"].causes == (), "no lane works, which the drops tell"


def test_a_peer_with_more_sas_is_named_beside_traffic() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        sample = outer(DropReason.UNKNOWN_SPI, life.inbound.spi + 1)
        life.second(sent=5, delivered=5, refused=[sample])
    assert (life.state, life.kinds) == ("up", [Kind.NUMBER_OF_SAS])


def test_a_peer_that_announces_lanes_does_not_make_an_idle_tunnel_failing() -> None:
    life = TunnelLife()
    life.second(sent=5, delivered=5)
    for _ in range(100):
        spis = (life.inbound.spi + n for n in (1, 2, 3))
        life.second(refused=[outer(DropReason.UNKNOWN_SPI, spi) for spi in spis])
    assert (life.state, life.kinds) == ("quiet", [Kind.NUMBER_OF_SAS])


def test_the_next_spi_where_nothing_was_ever_heard_is_a_wrong_spi() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        life.second(refused=[outer(DropReason.UNKNOWN_SPI, life.inbound.spi + 1)])
    assert (life.state, life.kinds) == ("failing", [Kind.FOREIGN_SPI])
    assert "'sas'" in life.text


def test_one_wrong_prefix_of_several_is_named_beside_traffic() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        sample = inner(DropReason.SELECTOR_MISMATCH, "10.2.0.1", "10.20.0.1", "t/in")
        drops = {DropReason.SELECTOR_MISMATCH: 1}
        life.second(sent=5, delivered=5, drops=drops, refused=[sample])
    assert (life.state, life.kinds) == ("up", [Kind.SELECTORS_IN])
    life.second(sent=5, delivered=5, seconds=FADE)
    assert life.kinds == []


def test_a_tunnels_own_drops_go_before_foreign_spis() -> None:
    life = TunnelLife()
    for _ in range(AWHILE):
        foreign = [outer(DropReason.UNKNOWN_SPI, 0x9000 + n) for n in range(8)]
        life.second(drops={DropReason.AUTH_FAILED: 1}, refused=foreign)
    assert life.kinds == [Kind.KEY]


def test_a_silent_tunnel_beside_one_that_hears_the_peer_does_not_blame_the_way() -> None:
    life = TunnelLife(liveness=2)
    other = replace(OUT, name="u/out", spi=0x2001, pair="u/in")
    other_in = replace(life.inbound, name="u/in", spi=0x2002, pair="u/out")
    life.desired = replace(life.desired, sas=(*life.desired.sas, other, other_in))
    for _ in range(10):
        life.more["u/in"].update({DropReason.DUMMY: 1})
        life.second()
    assert (life.state, life.kinds) == ("down", [Kind.SILENT])
    assert "by another one it does" in life.text


def test_a_pair_is_one_tunnel_whichever_of_the_two_names_the_other() -> None:
    for named in ("out", "in"):
        life = TunnelLife(liveness=2)
        out = replace(life.out, pair="t/in" if named == "in" else None)
        inbound = replace(life.inbound, pair="t/out" if named == "out" else None)
        for sas in ((out, inbound), (inbound, out)):
            life.desired = replace(life.desired, sas=sas)
            life.look()
            (watched,) = life.roster.tunnels.values()
            assert (watched.outbound, watched.inbound) == (("t/out",), ("t/in",))


def test_an_outbound_sa_alone_is_not_judged_by_what_comes() -> None:
    life = TunnelLife(liveness=2)
    life.desired = replace(life.desired, sas=(replace(life.out, pair=None),))
    for _ in range(60):
        life.second(sent=1)
    assert (life.state, life.kinds) == ("quiet", [])


def test_a_tunnel_with_a_new_key_begins_anew() -> None:
    life = TunnelLife()
    life.second(delivered=5)
    keymat = replace(life.inbound.keymat, salt=b"othr")
    life.desired = replace(life.desired, sas=(life.out, replace(life.inbound, keymat=keymat)))
    for _ in range(AWHILE):
        life.second(drops={DropReason.AUTH_FAILED: 1})
    assert life.kinds == [Kind.KEY]
