"""Traffic between two gateways arrives unchanged, and the wire carries only ESP."""

from __future__ import annotations

import pytest

from esp_gw.demo.traffic import iperf, iperf_server
from esp_gw.model import SUITES, Encapsulation, Mode
from tests.support.labtools import MakePair, StartTap, carry_tcp, carry_tcp_both_ways, ping, until

MODES = [Mode.TUNNEL, Mode.TRANSPORT]
ENCAPSULATIONS = [Encapsulation.UDP, Encapsulation.NONE]
# Ping payloads around the padding alignment and the MTU, and two that the kernel fragments.
SIZES = [0, 1, 2, 3, 4, 15, 16, 17, 100, 1371, 1400, 1408, 1409, 1410, 1411, 1500, 4000, 30000]


@pytest.mark.parametrize("encapsulation", ENCAPSULATIONS)
@pytest.mark.parametrize("outer_version", [4, 6])
def test_tunnel_mode_carries_both_families_over_either(
    make_pair: MakePair, tap: StartTap, encapsulation: Encapsulation, outer_version: int
) -> None:
    pair = make_pair(
        encapsulation=encapsulation, outer_version=outer_version, inner_versions=(4, 6)
    )
    wire = tap(pair.a.namespace)
    pair.start()
    for version in (4, 6):
        for size in SIZES:
            reply = ping(pair.a.namespace, pair.plan.inner(1, version), count=1, size=size)
            assert reply == 1, f"IPv{version}, {size} bytes"
        assert ping(pair.b.namespace, pair.plan.inner(0, version), count=1) == 1
    pair.stop()
    report = wire.finish()
    assert report.cleartext == 0, report.examples
    assert report.esp >= 2 * 2 * len(SIZES)


@pytest.mark.parametrize("encapsulation", ENCAPSULATIONS)
@pytest.mark.parametrize("outer_version", [4, 6])
def test_transport_mode_carries_host_to_host_traffic_of_every_size(
    make_pair: MakePair, tap: StartTap, encapsulation: Encapsulation, outer_version: int
) -> None:
    pair = make_pair(mode=Mode.TRANSPORT, encapsulation=encapsulation, outer_version=outer_version)
    wire = tap(pair.a.namespace)
    pair.start()
    # Beyond the MTU the ESP packet itself is fragmented: a tap can't classify later fragments.
    for size in [size for size in SIZES if size <= 1400]:
        reply = ping(pair.a.namespace, pair.plan.inner(1), count=1, size=size)
        assert reply == 1, f"{size} bytes"
    carry_tcp(pair.a.namespace, pair.b.namespace, pair.plan.inner(1))
    report = wire.finish()
    assert report.cleartext == 0, report.examples
    for size in (1500, 4000, 30000):
        reply = ping(pair.b.namespace, pair.plan.inner(0), count=1, size=size)
        assert reply == 1, f"{size} bytes"


@pytest.mark.parametrize("encapsulation", ENCAPSULATIONS)
@pytest.mark.parametrize("outer_version", [4, 6])
def test_no_cleartext_is_on_the_wire_while_the_peer_is_absent(
    make_pair: MakePair, tap: StartTap, encapsulation: Encapsulation, outer_version: int
) -> None:
    pair = make_pair(encapsulation=encapsulation, outer_version=outer_version)
    wire = tap(pair.b.namespace)
    pair.a.start()
    # The peer's kernel answers ESP with an ICMP error, which quotes it: no cleartext either.
    assert ping(pair.a.namespace, pair.plan.inner(1), count=1) == 0
    report = wire.finish()
    assert report.cleartext == 0, report.examples
    assert report.esp > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suite", ["aes192gcm16", "aes128gcm12", "aes256gcm8", "chacha20poly1305"])
def test_every_kind_of_suite_carries_tcp_both_ways(
    make_pair: MakePair, mode: Mode, suite: str
) -> None:
    pair = make_pair(mode=mode, suite=SUITES[suite])
    pair.start()
    target = pair.plan.inner(1)
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, target)
    assert pair.a.ask("status")["sas"] == 2
    assert {sa["suite"] for sa in pair.a.ask("sa", "list")["sas"]} == {suite}


def test_udp_of_several_sizes_arrives_without_loss_at_a_modest_rate(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    target = pair.plan.inner(1)
    for size in (16, 64, 512, 1360, 1410, 8000):
        # At most a thousand packets per second: no more than a busy machine can handle.
        rate = min(size * 8000, 2_000_000)
        with iperf_server(pair.b.namespace, target):
            result = iperf(pair.a.namespace, target, 1, "-u", "-b", str(rate), "-l", str(size))
        assert result.lost_percent == 0.0, f"{size} bytes"


def test_the_counters_of_both_ends_agree(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    assert ping(pair.a.namespace, pair.plan.inner(1), count=20, size=100) == 20
    sent, received = pair.a.ask("stats"), pair.b.ask("stats")
    assert sent["packets_out"] == received["packets_in"] == 20
    assert sent["bytes_out"] == received["bytes_in"] == 20 * 128
    assert sent["packets_in"] == received["packets_out"] == 20
    assert sent["drops"] == received["drops"] == {}
    (tunnel,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert (tunnel["packets_out"], tunnel["packets_in"]) == (20, 20)
    until(lambda: pair.a.ask("tunnel", "list")["tunnels"][0]["state"] == "up", "a look")


def test_a_smaller_wire_gives_a_smaller_tunnel_and_tcp_still_flows(make_pair: MakePair) -> None:
    pair = make_pair(mtu=1300)
    pair.start()
    assert pair.a.ask("status")["mtu"] == 1238
    carry_tcp(pair.a.namespace, pair.b.namespace, pair.plan.inner(1))


def test_a_path_mtu_that_shrinks_later_is_learned(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    target = pair.plan.inner(1)
    assert ping(pair.a.namespace, target, count=1, size=1400) == 1
    # In place of an ICMP "fragmentation needed" from a router: a route with a smaller MTU.
    pair.a.namespace.ip("route", "add", "192.0.2.2/32", "dev", "wan", "mtu", "1300")
    ping(pair.a.namespace, target, count=1, size=1400)
    carry_tcp(pair.a.namespace, pair.b.namespace, target)
    assert pair.a.ask("status")["mtu"] == 1238
    assert ping(pair.a.namespace, target, count=1, size=1400) == 1
