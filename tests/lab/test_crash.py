"""A daemon killed at a bad moment repeats no IV, leaks no cleartext, and recovers.

So does one that ends by itself because its data plane failed.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

from esp_gw.demo.netns import Namespace, end
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.tap import Tap
from esp_gw.demo.traffic import iperf_server
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import FloorRequest, Ledger
from tests.support.labtools import (
    MakePair,
    StartCapture,
    configured_sa,
    esp_packets,
    guard,
    network,
    ping,
    until,
)


def test_no_iv_is_used_twice_when_the_sender_is_killed_under_load(
    make_pair: MakePair, capture: StartCapture
) -> None:
    pair = make_pair()
    pair.start()
    target = pair.plan.inner(1)
    wire = capture(pair.a.namespace)
    for _ in range(3):
        with iperf_server(pair.b.namespace, target):
            client = pair.a.namespace.start("iperf3", "-c", target, "-t", "30")
            until(lambda: pair.a.ask("stats")["packets_out"] > 2000, "traffic flows")
            pair.a.kill()
            end(client)
        pair.a.start()
        until(lambda: ping(pair.a.namespace, target, count=1), "the tunnel is back")
    seen = Counter((packet.spi, packet.iv) for packet in esp_packets(wire.stop()))
    assert len({spi for spi, _ in seen}) == 2
    assert sum(seen.values()) > 6000
    repeated = [key for key, count in seen.items() if count > 1]
    assert repeated == []


def test_after_a_kill_no_cleartext_leaves_and_a_restart_cleans_up(
    make_pair: MakePair, tap: Callable[[Namespace, bytes], Tap]
) -> None:
    pair = make_pair()
    host = pair.a.namespace
    # A default route is the way out that a protected packet would take by mistake.
    host.ip("route", "add", "default", "via", "192.0.2.2")
    before = network(host)
    wire = tap(host, ip_address(pair.plan.inner(1)).packed)
    pair.start()
    target = pair.plan.inner(1)
    assert ping(host, target, count=2) == 2
    during = network(host)
    pair.a.kill()
    assert "unreachable 10.2.0.0/24" in host.ip("route", "show", "table", "4500")
    assert ping(host, target, count=2) == 0
    pair.a.start()
    assert network(host) == during
    assert ping(host, target, count=2) == 2
    assert pair.a.stop() == 0
    guard(pair.a, "down")
    assert network(host) == before
    pair.b.stop()
    report = wire.finish()
    assert (report.cleartext, report.leaked) == (0, 0), report.examples


def test_a_failed_data_plane_ends_the_daemon_with_one_line_and_leaks_nothing(
    make_pair: MakePair, tap: Callable[[Namespace, bytes], Tap]
) -> None:
    pair = make_pair()
    host, target = pair.a.namespace, pair.plan.inner(1)
    # A default route is the way out that a protected packet would take by mistake.
    host.ip("route", "add", "default", "via", "192.0.2.2")
    wire = tap(host, ip_address(target).packed)
    pair.start()
    host.ip("link", "del", "esp0")
    process = pair.a.process
    assert process is not None
    assert process.wait(10) == 1
    assert re.fullmatch(
        r"esp0: (worker \d+: )?the TUN device is gone.*", pair.a.last_words().splitlines()[-1]
    )
    assert "Traceback" not in pair.a.log.read_text()
    assert "unreachable 10.2.0.0/24" in host.ip("route", "show", "table", "4500")
    assert ping(host, target, count=2) == 0
    report = wire.finish()
    assert (report.cleartext, report.leaked) == (0, 0), report.examples
    pair.a.start()
    assert ping(host, target, count=2) == 2


def test_packets_accepted_before_the_last_floor_are_refused_after_a_kill(
    make_pair: MakePair,
) -> None:
    pair = make_pair()
    pair.start()
    assert ping(pair.a.namespace, pair.plan.inner(1), count=10) == 10
    name = "pi-a/in"
    ledger = pair.b.folder / "ledger.db"
    before = ledger.stat().st_mtime_ns
    until(lambda: ledger.stat().st_mtime_ns != before, "the floor is written", 15)
    pair.b.kill()
    pair.b.start()
    (sa,) = [sa for sa in pair.b.ask("sa", "list")["sas"] if sa["name"] == name]
    assert sa["seq"] >= 10


def test_a_kill_under_load_leaves_a_ceiling_above_all_that_was_received(
    make_pair: MakePair, capture: StartCapture
) -> None:
    pair = make_pair()
    pair.start()
    target = pair.plan.inner(1)
    into = configured_sa(pair.b, "pi-a/in")
    wire = capture(pair.b.namespace)
    with iperf_server(pair.b.namespace, target):
        client = pair.a.namespace.start("iperf3", "-c", target, "-t", "30")
        until(lambda: pair.b.call("GetStats")["packets_in"] > 30_000, "traffic flows", 30)
        pair.b.kill()
        end(client)
    numbers = [packet.seq_lo for packet in esp_packets(wire.stop()) if packet.spi == into.spi]
    with contextlib.closing(Ledger.open(pair.b.folder / "ledger.db", machine_identity())) as ledger:
        _, (received,) = ledger.begin([], [FloorRequest(into.keymat, None)])
    assert received.floor < max(numbers) <= received.fence


def test_a_clean_restart_wastes_no_sequence_numbers(
    make_pair: MakePair,
) -> None:
    pair = make_pair()
    pair.start()
    target = pair.plan.inner(1)
    assert ping(pair.a.namespace, target, count=3) == 3
    (before,) = [sa for sa in pair.a.ask("sa", "list")["sas"] if sa["direction"] == "outbound"]
    pair.a.stop()
    pair.a.start()
    (after,) = [sa for sa in pair.a.ask("sa", "list")["sas"] if sa["direction"] == "outbound"]
    assert after["seq"] == before["seq"]
    assert ping(pair.a.namespace, target, count=3) == 3


def test_a_missing_ledger_prevents_the_start_with_a_hint(
    make_pair_of_one_engine: MakePair,
) -> None:
    pair = make_pair_of_one_engine()
    pair.start()
    pair.a.kill()
    for path in pair.a.folder.glob("ledger.db*"):
        path.unlink()
    message = _refused(pair, 1)
    assert "ledger" in message
    assert "esp-gw keygen" in message


def test_a_damaged_ledger_is_refused(make_pair_of_one_engine: MakePair) -> None:
    pair = make_pair_of_one_engine()
    pair.start()
    pair.a.kill()
    ledger = pair.a.folder / "ledger.db"
    content = bytearray(ledger.read_bytes())
    for at in range(4096, len(content), 7):
        content[at] ^= 0x10
    ledger.write_bytes(content)
    assert "damaged" in _refused(pair, 65)


def test_a_key_keeps_its_sequence_numbers_through_a_rename_and_a_new_spi(
    make_pair: MakePair, capture: StartCapture
) -> None:
    pair = make_pair()
    pair.start()
    wire = capture(pair.a.namespace)
    target = pair.plan.inner(1)
    assert ping(pair.a.namespace, target, count=5) == 5
    pair.a.kill()
    text = pair.a.config.read_text()
    changed = re.sub(r"(?m)^  pi-b:", "  renamed:", text)
    changed = re.sub(r"(outbound:\s*(?:\{|\n\s+)\s*spi: )\S+?([,\n])", r"\g<1>0x7777\2", changed)
    assert changed.count("renamed") == 1
    assert "0x7777" in changed
    pair.a.config.write_text(changed)
    pair.a.start()
    ping(pair.a.namespace, target, count=5)
    ivs = [packet.iv for packet in esp_packets(wire.stop()) if packet.frame[26:30] == b"\xc0\0\2\1"]
    assert len(ivs) == len(set(ivs)) == 10


def _refused(pair: GatewayPair, status: int) -> str:
    pair.a.launch()
    process = pair.a.process
    assert process is not None
    assert process.wait(10) == status
    return pair.a.last_words()
