"""The packet filter: no way around the tunnel, in or out, and everything else as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from tests.support.engines import ENGINES
from tests.support.labtools import drops, edit, ping, until
from tests.support.two_sites import PLACES, PORT, Places, TwoSites, datagram, two_sites

pytestmark = pytest.mark.either_engine


@pytest.fixture(params=ENGINES)
def sites(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(tmp_path, request.param) as sites:
        yield sites


@pytest.fixture(params=PLACES.values(), ids=lambda places: f"ipv{places.version}")
def places(request: pytest.FixtureRequest) -> Places:
    found: Places = request.param
    return found


def addressed(packets: list[Packet], source: str, destination: str = "") -> list[Packet]:
    """Return the packets with these addresses, in any layer but those that an ICMP error quotes."""
    found = []
    for packet in packets:
        layer = packet.getlayer(IP) or packet.getlayer(IPv6)
        if layer is not None and layer.src == source and destination in ("", layer.dst):
            found.append(packet)
    return found


def to_port(packets: list[Packet], port: int = PORT) -> list[Packet]:
    return [packet for packet in packets if UDP in packet and packet[UDP].dport == port]


@pytest.mark.parametrize("width", ["the far site", "a prefix around both sites"])
def test_in_tunnel_mode_nothing_goes_around_the_tunnel(
    sites: TwoSites, places: Places, width: str
) -> None:
    remote_ts = places.wide if "around" in width else places.remote_ts
    sites.configure("tunnel", places.local_ts, remote_ts, places)
    sites.start()
    a, host, net, ns_b = sites.ns_a, sites.host, sites.net, sites.ns_b
    # Passes.
    assert ping(a, places.far, count=2) == 2
    assert ping(host, places.far, count=2) == 2
    assert ping(a, places.lan, count=1) == 1
    assert ping(host, places.lan, count=1) == 1
    assert ping(a, places.host, count=1) == 1
    assert ping(a, places.net, count=1) == 1
    assert ping(net, places.a, count=1) == 1
    before = drops(sites.a)
    # Dropped.
    assert not to_port(sites.seen(net, "br0", lambda: sites.send_bound(places.imposter)))
    for target, where, device in ((places.lan, a, "esp0"), (places.host, host, "eth0")):
        forged = sites.seen(where, device, lambda to=target: sites.forge(places.imposter, to))  # type: ignore[misc]
        assert not addressed(forged, places.imposter, target)
        assert not addressed(forged, target, places.imposter)
    spoofed = sites.seen(ns_b, "esp0", lambda: sites.forge(places.host, places.far))
    assert not addressed(spoofed, places.host)
    after = drops(sites.a)
    assert {
        name: after[name] - before[name]
        for name in ("cleartext-out", "cleartext-in", "spoofed-source")
    } == {"cleartext-out": 3, "cleartext-in": 6, "spoofed-source": 3}


def test_with_a_protected_default_route_only_local_traffic_is_protected(
    sites: TwoSites, places: Places
) -> None:
    sites.configure("tunnel", places.local_ts, places.default, places)
    sites.start()
    a, host, net = sites.ns_a, sites.host, sites.net
    host.start("ping", "-c2", "-i0.2", "-W1", places.stranger).wait()
    until(lambda: sites.a.call("GetStats")["packets_out"] >= 1, "it leaves as ESP")
    assert ping(host, places.lan, count=1) == 1
    assert ping(a, places.host, count=1) == 1
    # The uplink's network, and the administrator who comes from far away.
    assert ping(host, places.net, count=1) == 1
    assert ping(net, places.a, count=1) == 1
    far = net.run("ping", "-c1", "-W2", "-I", places.stranger, places.a, check=False)
    assert far.returncode == 0, far.stdout
    before = drops(sites.a)
    clear = sites.seen(host, "eth0", lambda: sites.forge(places.stranger, places.host))
    assert not addressed(clear, places.stranger)
    leaked = sites.seen(net, "br0", lambda: sites.send_bound(places.stranger, places.lan))
    assert not to_port(leaked)
    after = drops(sites.a)
    assert after["cleartext-in"] - before["cleartext-in"] == 3
    assert after["cleartext-out"] - before["cleartext-out"] == 3


def test_in_transport_mode_the_peer_itself_is_protected(sites: TwoSites, places: Places) -> None:
    sites.configure("transport", "", "", places)
    sites.start()
    a, ns_b, net = sites.ns_a, sites.ns_b, sites.net
    for namespace in (a, ns_b):
        namespace.ip(f"-{places.version}", "neigh", "flush", "dev", "wan")
    # The neighbour is found anew, though its address is protected.
    assert ping(a, places.b, count=2) == 2
    assert ping(ns_b, places.a, count=2) == 2
    assert ping(a, places.net, count=1) == 1
    heard = sites.seen(a, "wan", lambda: sites.forge(places.b, places.a, datagram(500)))
    assert to_port(heard, 500)
    before = drops(sites.a)
    answered = sites.seen(a, "wan", lambda: sites.forge(places.b, places.a))
    assert not addressed(answered, places.a, places.b) or all(
        UDP in packet for packet in addressed(answered, places.a, places.b)
    )
    assert not to_port(sites.seen(net, "br0", lambda: sites.send_bound(places.b)))
    after = drops(sites.a)
    assert after["cleartext-in"] - before["cleartext-in"] == 3
    assert after["cleartext-out"] - before["cleartext-out"] == 3


@pytest.mark.parametrize("mode", ["tunnel", "transport"])
def test_a_link_local_source_is_no_way_out_to_a_protected_address(
    sites: TwoSites, mode: str
) -> None:
    places = PLACES[6]
    sites.configure(mode, places.local_ts, places.remote_ts, places)
    sites.start()
    target = places.imposter if mode == "tunnel" else places.b
    before = drops(sites.a)["cleartext-out"]
    sent = sites.seen(sites.net, "br0", lambda: sites.send_from_link_local(target))
    assert not to_port(sent)
    assert drops(sites.a)["cleartext-out"] - before == 3
    # An unprotected address is reached from there, once its link-layer address is known.
    until(
        lambda: (
            len(
                to_port(
                    sites.seen(sites.net, "br0", lambda: sites.send_from_link_local(places.net))
                )
            )
            == 3
        ),
        "the datagrams pass",
    )


def test_what_a_bypass_policy_names_goes_around_in_both_directions(
    sites: TwoSites, places: Places
) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    edit(
        sites.a,
        lambda config: config.update(
            policies=[
                {
                    "action": "bypass",
                    "remote_ts": f"{places.imposter}",
                    "protocol": "udp",
                    "remote_port": str(PORT),
                }
            ]
        ),
    )
    sites.start()
    passed = sites.seen(sites.net, "br0", lambda: sites.send_bound(places.imposter))
    assert len(to_port(passed)) == 3
    blocked = sites.seen(sites.net, "br0", lambda: sites.send_bound(places.imposter, port=PORT + 1))
    assert not to_port(blocked, PORT + 1)
    reply = UDP(sport=PORT, dport=PORT) / Raw(b"reply")
    sites.forge(places.imposter, places.a, reply)
    assert drops(sites.a)["cleartext-in"] == 0
    sites.forge(places.imposter, places.a, UDP(sport=PORT + 1, dport=PORT) / Raw(b"reply"))
    assert drops(sites.a)["cleartext-in"] == 3


def test_an_icmp_error_that_quotes_esp_reaches_the_gateway_and_another_does_not(
    sites: TwoSites,
) -> None:
    places = PLACES[4]
    sites.configure("transport", "", "", places)
    sites.start()
    outer = IP(src=places.a, dst=places.b)
    for quoted, expected in (
        (outer / UDP(sport=4500, dport=4500) / Raw(bytes(8)), 0),
        (IP(src=places.a, dst=places.b, proto=50) / Raw(bytes(8)), 0),
        (outer / ICMP() / Raw(bytes(8)), 3),
    ):
        before = drops(sites.a)["cleartext-in"]
        sites.forge(places.b, places.a, ICMP(type=3, code=4) / Raw(bytes(quoted)))
        assert drops(sites.a)["cleartext-in"] - before == expected


def test_settings_switch_it_off_and_on_by_a_reload(sites: TwoSites) -> None:
    places = PLACES[4]
    sites.configure("tunnel", places.local_ts, places.remote_ts, places, source_check="off")
    sites.start()
    sites.forge(places.host, places.far)
    assert drops(sites.a)["spoofed-source"] == 0
    edit(sites.a, lambda config: config["gateway"].update(firewall="off"))
    sites.a.cli("reload")
    tables = sites.ns_a.run("nft", "list", "tables").stdout
    assert "esp_gw" not in tables
    edit(sites.a, lambda config: config["gateway"].update(firewall="auto", source_check="auto"))
    sites.a.cli("reload")
    sites.forge(places.host, places.far)
    assert drops(sites.a)["spoofed-source"] == 3


def test_a_flushed_or_changed_table_is_repaired_and_other_tables_are_left_alone(
    sites: TwoSites,
) -> None:
    places = PLACES[4]
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    sites.start()
    a = sites.ns_a
    a.run(
        "nft", "add table inet users; add chain inet users c { type filter hook input priority 0; }"
    )
    users = a.run("nft", "list", "table", "inet", "users").stdout

    def ours() -> str:
        return a.run("nft", "-s", "list", "table", "inet", "esp_gw", check=False).stdout

    whole = ours()
    for spoil in (
        "flush ruleset",
        "flush chain inet esp_gw egress",
        "delete element inet esp_gw remote4 { 10.2.0.0/24 }",
        "add rule inet esp_gw scope accept",
    ):
        a.run(
            "nft",
            "add table inet users; add chain inet users c { type filter hook input priority 0; }",
        )
        a.run("nft", spoil)
        until(
            lambda: (
                a.run("nft", "-s", "list", "table", "inet", "esp_gw", check=False).stdout == whole
            ),
            f"repaired after {spoil}",
            90,
        )
    assert any("nftables table esp_gw" in text for text in sites.a.ask("status")["warnings"])
    a.run(
        "nft", "add table inet users; add chain inet users c { type filter hook input priority 0; }"
    )
    assert a.run("nft", "list", "table", "inet", "users").stdout == users


def test_without_nft_status_says_what_is_not_closed_and_the_tunnel_carries(
    sites: TwoSites, tmp_path: Path
) -> None:
    places = PLACES[4]
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    broken = tmp_path / "bin"
    broken.mkdir()
    # A machine that lists tables and takes none is refused like one without nf_tables.
    script = 'case $2 in list) exec /usr/sbin/nft "$@";; esac; echo Error: no nf_tables >&2; exit 1'
    (broken / "nft").write_text(f"#!/bin/sh\n{script}\n")
    (broken / "nft").chmod(0o755)
    sites.a.env["PATH"] = f"{broken}:/usr/sbin:/usr/bin:/sbin:/bin"
    sites.start()
    assert ping(sites.ns_a, places.far, count=2) == 2
    (warning,) = [text for text in sites.a.ask("status")["warnings"] if "not closed" in text]
    assert "no nf_tables" in warning
    assert "forged sources" in warning
    # There is nothing to remove either.
    edit(sites.a, lambda config: config.update(tunnels={}))
    sites.a.cli("reload")
    assert "not closed" not in str(sites.a.ask("status")["warnings"])


def test_an_nft_that_fails_for_a_while_is_said_once_and_leaves_the_filter_in_place(
    sites: TwoSites, tmp_path: Path
) -> None:
    places = PLACES[4]
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    broken = tmp_path / "broken"
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f'[ -e {broken} ] && {{ echo "netlink: Error: No buffer space" >&2; exit 1; }}'
    (folder / "nft").write_text(f'#!/bin/sh\n{script}\nexec /usr/sbin/nft "$@"\n')
    (folder / "nft").chmod(0o755)
    sites.a.env["PATH"] = f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"
    sites.start()
    a = sites.ns_a

    def ours() -> str:
        return a.run("nft", "-s", "list", "table", "inet", "esp_gw", check=False).stdout

    def warnings() -> str:
        return str(sites.a.ask("status")["warnings"])

    whole = ours()
    broken.touch()
    for number in range(3):
        # Every program's change is a reason to look.
        a.run("nft", f"add table inet users{number}")
        until(lambda: "can't be looked at" in warnings(), "a warning", 30)
    assert ours() == whole
    assert ping(a, places.far, count=2) == 2
    a.run("nft", "delete table inet esp_gw")
    broken.unlink()
    until(lambda: ours() == whole, "the table is there again without another change", 40)
    until(lambda: "looked at" not in warnings(), "no warning", 40)
    log = sites.a.log.read_text()
    assert log.count("the packet filter can't be looked at") == 1
    assert "the packet filter is not in place" not in log


def test_a_filter_that_nft_could_not_set_is_set_once_nft_works(
    sites: TwoSites, tmp_path: Path
) -> None:
    places = PLACES[4]
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    nft, works = tmp_path / "bin" / "nft", tmp_path / "works"
    nft.parent.mkdir()
    script = f'[ -e {works} ] && exec /usr/sbin/nft "$@"\necho Error: busy >&2; exit 1'
    nft.write_text(f"#!/bin/sh\n{script}\n")
    nft.chmod(0o755)
    sites.a.env["PATH"] = f"{nft.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    sites.start()
    assert "not closed" in str(sites.a.ask("status")["warnings"])
    works.touch()
    until(
        lambda: "not closed" not in str(sites.a.ask("status")["warnings"]),
        "the filter is in place without a change of the network",
        40,
    )
    sites.ns_a.run("nft", "list", "table", "inet", "esp_gw")
    since = sites.a.log.read_text().partition(" ready ")[2]
    assert "not in place" not in since
