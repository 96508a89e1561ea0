"""tshark decrypts the traffic of two gateways, given the keys of their SAs."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.traffic import iperf, iperf_server
from esp_gw.model import SUITES, Encapsulation, Mode, Sa
from tests.support.evidence import RecordProperty, record_trial
from tests.support.labtools import Capture, configured_sa, edit, ping, tunnel

pytestmark = pytest.mark.root
PINGS = 5


@pytest.mark.parametrize("suite", ["aes256gcm16", "aes128gcm8"])
@pytest.mark.parametrize("encapsulation", list(Encapsulation))
@pytest.mark.parametrize("mode", list(Mode))
def test_tshark_decrypts_and_verifies_real_traffic(
    tmp_path: Path,
    mode: Mode,
    encapsulation: Encapsulation,
    suite: str,
    record_property: RecordProperty,
) -> None:
    assert os.geteuid() == 0, "lab tests need root for network namespaces: run ./scripts/test"
    plan = PairPlan(mode=mode, encapsulation=encapsulation, suite=SUITES[suite])
    with gateway_pair(tmp_path, plan) as pair:
        for gateway in (pair.a, pair.b):
            # tshark verifies ICVs only without extended sequence numbers (Wireshark up to 4.2).
            edit(gateway, lambda config: tunnel(config).update(esn=False))
        pair.start()
        esp = "ESP in UDP" if encapsulation is Encapsulation.UDP else "ESP"
        record_trial(
            record_property,
            peer=_version(),
            configuration=f"{suite}, {mode}, IPv4, {esp}, no ESN",
            tried="pings and a TCP stream of two gateways: decrypted, ICVs verified",
            engine=pair.a.ask("status")["engine"],
        )
        wire = Capture(pair.a.namespace, tmp_path / "wire.pcap")
        target = plan.inner(1)
        assert ping(pair.a.namespace, target, count=PINGS, size=201) == PINGS
        with iperf_server(pair.b.namespace, target):
            assert iperf(pair.a.namespace, target, 1, "-b", "2M").gbit_s > 0
        packets = _decrypted(wire.stop(), pair)
    assert {packet["esp.icv_good"] for packet in packets} == {"1"}
    sides = {plan.inner(0), plan.inner(1)}
    for packet in packets:
        # Tunnel mode has two IP headers, the inner one last; transport mode has one.
        headers = packet["ip.src"].split(","), packet["ip.dst"].split(",")
        assert len(headers[0]) == (2 if mode is Mode.TUNNEL else 1)
        assert {headers[0][-1], headers[1][-1]} == sides
    echoes = Counter((packet["icmp.type"], packet["data.len"]) for packet in packets)
    assert (echoes["8", "201"], echoes["0", "201"]) == (PINGS, PINGS)
    tcp = [packet for packet in packets if packet["tcp.dstport"] == "5201"]
    assert sum(int(packet["tcp.len"]) for packet in tcp) > 100_000
    assert {packet["tcp.checksum.status"] for packet in tcp} == {"1"}


FIELDS = (
    *("ip.src", "ip.dst", "esp.icv_good", "icmp.type", "data.len"),
    *("tcp.dstport", "tcp.len", "tcp.checksum.status"),
)


def _version() -> str:
    result = subprocess.run(("tshark", "--version"), capture_output=True, text=True, check=True)
    return f"tshark {result.stdout.split()[2]}"


def _decrypted(capture: Path, pair: GatewayPair) -> list[dict[str, str]]:
    sas = [configured_sa(pair.a, f"pi-b/{way}") for way in ("out", "in")]
    command = ["tshark", "-r", str(capture), "-Y", "esp", "-T", "fields"]
    for option in (
        "esp.enable_encryption_decode:TRUE",
        "esp.enable_authentication_check:TRUE",
        "tcp.check_checksum:TRUE",
        *(f"uat:esp_sa:{_record(sa)}" for sa in sas),
    ):
        command += ["-o", option]
    for field in FIELDS:
        command += ["-e", field]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in result.stdout.splitlines()]


def _record(sa: Sa) -> str:
    """An SA as a row of tshark's table `esp_sa`."""
    ends = (sa.local, sa.remote) if sa.name.endswith("/out") else (sa.remote, sa.local)
    columns = (
        *("IPv4", str(ends[0]), str(ends[1]), f"{sa.spi:#010x}"),
        f"AES-GCM with {sa.suite.icv_len} octet ICV [RFC4106]",
        f"0x{sa.keymat.to_bytes().hex()}",
        *("NULL", ""),
    )
    return ",".join(f'"{column}"' for column in columns)
