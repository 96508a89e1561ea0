"""Lanes of a tunnel with several SAs: sparse flows by the first one, bulk by the others."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import count as counting
from pathlib import Path

import pytest

from esp_gw.config.keyfile import format_keymat
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, end
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.traffic import iperf_server
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger
from esp_gw.model import Encapsulation
from tests.support.labtools import (
    MakePair,
    answers,
    carry_tcp_both_ways,
    configured_sa,
    drops,
    edit,
    packets_by_lane,
    ping,
    sas,
    send_tcp,
    start_pings,
    tunnel,
    until,
)

LANED = ["python", "native"]
"""The engines that have lanes."""
SAS = 4
BULK_LANES = [".2", ".3", ".4"]
FLOWS = 12
FIRST = counting(0, FLOWS)
"""The numbers of bulk flows that were not there before."""
COUNT = 200
"""Datagrams of a flow that is bulk for a while."""
PORT = 7000
RATE = 1600
"""Datagrams a second of three times what makes a flow bulk: a busy machine sends less."""
INNER = ("10.1.0.1", "10.2.0.1")
LAST_SEQ = 2**32 - 1
LEFT = 50
"""Sequence numbers that an SA has left when its gateway starts."""
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(params=LANED)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_laned(engine: str, tmp_path: Path, stack: contextlib.ExitStack) -> MakePair:
    """Build a pair of gateways whose tunnel has SAS SAs, not started."""

    def make(**fields: object) -> GatewayPair:
        fields = {"sas": SAS, "settings": {"engine": engine}} | fields
        return stack.enter_context(gateway_pair(tmp_path, PairPlan(**fields)))  # type: ignore[arg-type]

    return make


def lanes_used(pair: GatewayPair) -> list[set[str]]:
    """The bulk lanes that carried at least 100 packets, for both directions at both ends."""
    return [
        {lane for lane, count in packets_by_lane(gateway, way).items() if lane and count >= 100}
        for gateway, way in ((pair.a, "out"), (pair.b, "in"), (pair.b, "out"), (pair.a, "in"))
    ]


@contextlib.contextmanager
def program(namespace: Namespace, name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program of tests/support that says when it is ready."""
    command = (sys.executable, str(SUPPORT / name), *map(str, arguments))
    process = namespace.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert next(iter(process.stdout or ()), "") == "ready\n"
        yield process
    finally:
        end(process)


def send_bulk(pair: GatewayPair, flows: int = FLOWS) -> dict[str, int]:
    """Send flows that are bulk, one after the other, from a to b and back."""
    with program(pair.b.namespace, "flows.py", "echo", INNER[1], PORT):
        arguments = ("each", INNER[1], PORT, flows, COUNT, next(FIRST))
        command = (sys.executable, str(SUPPORT / "flows.py"), *map(str, arguments))
        found: dict[str, int] = json.loads(pair.a.namespace.run(*command).stdout)
    return found


def carry_bulk(pair: GatewayPair) -> None:
    """Send bulk flows: none loses a packet, and none is reordered but when it moves."""
    found = send_bulk(pair)
    assert found["answered"] == FLOWS * COUNT
    # It moves once, in each direction.
    assert found["bursts"] <= 2
    if pair.a.ask("status")["workers"] == 1:
        assert found["out_of_order"] == 0


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
@pytest.mark.parametrize("version", [4, 6])
def test_pings_have_lane_0_and_the_stream_beside_them_another_one_at_both_ends(
    make_laned: MakePair, encapsulation: Encapsulation, version: int
) -> None:
    pair = make_laned(encapsulation=encapsulation, inner_versions=(version,))
    pair.start()
    target = pair.plan.inner(1)
    assert ping(pair.a.namespace, target, count=5) == 5
    for gateway in (pair.a, pair.b):
        for way in ("in", "out"):
            assert packets_by_lane(gateway, way) == {"": 5, ".2": 0, ".3": 0, ".4": 0}
    with iperf_server(pair.b.namespace, target):
        pings = start_pings(pair.a.namespace, target, 300)
        send_tcp(pair.a.namespace, target)
        assert answers(pings) > 0
    used = lanes_used(pair)
    (lane,) = used[0]
    assert used == [{lane}] * 4
    # The stream's beginning, iperf3's control connection, and all pings.
    assert packets_by_lane(pair.a, "out")[""] >= 305
    assert packets_by_lane(pair.a, "out")[lane] > packets_by_lane(pair.a, "out")[""]
    assert not {"auth-failed", "no-sa", "unknown-spi"} & (drops(pair.a) | drops(pair.b)).keys()


def test_a_flow_goes_back_to_lane_0_where_both_ends_say_little_after_a_burst(
    make_laned: MakePair,
) -> None:
    pair = make_laned()
    pair.start()

    def burst() -> bool:
        ping(pair.a.namespace, INNER[1], count=300, size=1300, interval=0.001)
        return all(lanes_used(pair))

    until(burst, "a burst of pings has a bulk lane", 20)
    before = [packets_by_lane(gateway, "out")[""] for gateway in (pair.a, pair.b)]
    pings = start_pings(pair.a.namespace, INNER[1], 40, interval=0.5)
    try:
        until(
            lambda: all(
                packets_by_lane(gateway, "out")[""] > count
                for gateway, count in zip((pair.a, pair.b), before, strict=True)
            ),
            "they are on lane 0 at both ends",
        )
    finally:
        end(pings)


def test_bulk_flows_are_spread_over_the_bulk_lanes_and_keep_their_order(
    make_laned: MakePair,
) -> None:
    pair = make_laned()
    pair.start()
    carry_bulk(pair)
    assert lanes_used(pair) == [set(BULK_LANES)] * 4
    assert packets_by_lane(pair.a, "out") == packets_by_lane(pair.b, "in")
    assert packets_by_lane(pair.b, "out") == packets_by_lane(pair.a, "in")
    for gateway in (pair.a, pair.b):
        out = packets_by_lane(gateway, "out")
        assert 0 < out[""] < out.total() / 2
        assert drops(gateway) == {}


def test_the_lists_show_the_flows_of_each_lane(make_laned: MakePair) -> None:
    pair = make_laned()
    pair.start()
    send_bulk(pair, flows=1)
    assert ping(pair.a.namespace, INNER[1], count=1) == 1
    (row,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert [lane["sa"] for lane in row["lanes"]] == [
        "pi-b/out",
        *(f"pi-b/out{n}" for n in BULK_LANES),
    ]
    sparse, *bulk = (lane["flows"] for lane in row["lanes"])
    assert (sparse, sorted(bulk)) == (1, [0, 0, 1])
    assert pair.a.ask("stats")["lanes"] == {"pi-b": row["lanes"]}
    text = pair.a.cli("tunnel", "list").stdout
    assert f"flows of pi-b by lane: 0: 1, 1: {bulk[0]}, 2: {bulk[1]}, 3: {bulk[2]}\n" in text
    assert "\n  lanes: " in pair.a.cli("status", check=False).stdout
    until(
        lambda: not any(lane["flows"] for lane in pair.a.ask("stats")["lanes"]["pi-b"]),
        "no flow has sent for a while",
        20,
    )


@pytest.mark.parametrize("number", [0, 2])
def test_a_peer_that_sends_by_one_sa_for_all_loses_nothing(
    make_laned: MakePair, number: int
) -> None:
    pair = make_laned()
    add_single_sas(pair, number)
    carry_bulk(pair)
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, INNER[1])
    taken = {lane for lane, count in packets_by_lane(pair.a, "in").items() if count}
    assert taken == {suffix(number)}
    assert all(packets_by_lane(pair.a, "out")[lane] for lane in BULK_LANES)
    lost = drops(pair.a) | drops(pair.b)
    assert not {"auth-failed", "no-sa", "unknown-spi", "selector-mismatch"} & lost.keys()


def suffix(number: int) -> str:
    """The end of the name of a lane's SA."""
    return f".{number + 1}" if number else ""


def add_single_sas(pair: GatewayPair, number: int) -> None:
    """Start both, b with the same SAs added one by one, and a policy with one of them alone."""
    edit(pair.b, lambda config: config.update(tunnels={}))
    pair.start()
    ends = ("--local", "192.0.2.2", "--remote", "192.0.2.1")
    nets = ("--local-ts", "10.2.0.0/24", "--remote-ts", "10.1.0.0/24")
    for index in range(SAS):
        for theirs, direction in (("out", "inbound"), ("in", "outbound")):
            sa = configured_sa(pair.a, f"pi-b/{theirs}{suffix(index)}")
            key = pair.b.folder / f"{direction}.{index}"
            key.touch(0o600)
            key.write_text(format_keymat(sa.keymat))
            pair.b.cli(
                *("sa", "add", f"{direction}{index}", "--direction", direction),
                *("--spi", str(sa.spi), "--key-file", str(key), *ends, *nets),
            )
    sa_name = f"outbound{number}"
    pair.b.cli("policy", "add", "all", "--action", "protect", "--sa", sa_name, *nets)


class Keys:
    """The keys of a pair's tunnel, of which a configuration may use the first ones alone."""

    def __init__(self, pair: GatewayPair) -> None:
        self._lines = {
            path: path.read_text().splitlines(keepends=True)
            for gateway in (pair.a, pair.b)
            for path in (gateway.config.parent / "keys").iterdir()
        }

    def configure(self, gateway: LabGateway, number: int) -> None:
        """Configure a gateway with a number of SAs."""
        edit(gateway, lambda config: tunnel(config).update(sas=number))
        for path, lines in self._lines.items():
            if path.is_relative_to(gateway.config.parent):
                path.write_text("".join(lines[: number - SAS or None]))

    def reload(self, number: int, *order: LabGateway) -> None:
        """Reload both ends with a number of SAs, the receiver of a new SA before its sender."""
        for gateway in order:
            self.configure(gateway, number)
            gateway.cli("reload")


@contextlib.contextmanager
def numbered_flow(
    source: LabGateway, target: LabGateway, ends: tuple[str, str]
) -> Iterator[list[dict[str, int]]]:
    """Send numbered datagrams from `ends[0]` to `ends[1]`; yield a list for the final report."""
    reports: list[dict[str, int]] = []
    with (
        program(target.namespace, "numbered.py", "receive", ends[1], PORT) as receiver,
        program(source.namespace, "numbered.py", "send", *ends, PORT, RATE) as sender,
    ):
        yield reports
        sent = int(sender.communicate("", timeout=30)[0])
        report = json.loads(receiver.communicate("", timeout=30)[0])
        reports.append({"sent": sent, **report})


@pytest.mark.parametrize("a_first", [True, False])
def test_a_reload_to_several_sas_and_back_loses_nothing_of_bulk_flows_both_ways(
    make_laned: MakePair, *, a_first: bool
) -> None:
    pair = make_laned()
    order = (pair.a, pair.b) if a_first else (pair.b, pair.a)
    keys = Keys(pair)
    for gateway in order:
        keys.configure(gateway, 1)
    pair.start()
    for gateway in order:
        # Room for what waits meanwhile.
        gateway.namespace.ip("link", "set", "esp0", "txqueuelen", "50000")
    with (
        numbered_flow(pair.a, pair.b, INNER) as to_b,
        numbered_flow(pair.b, pair.a, INNER[::-1]) as to_a,
    ):
        until(lambda: packets_by_lane(pair.b, "in")[""] > 200, "the flow has begun")
        seq = sas(pair.a)["pi-b/out"]["seq"]
        for _ in range(2):
            keys.configure(order[0], SAS)
            order[0].cli("reload")
            # As long as only one end knows them, its packets have the lane that the other knows.
            before = packets_by_lane(pair.b, "in")[""]
            until(lambda at=before: packets_by_lane(pair.b, "in")[""] > at + 500, "it goes on")
            assert not any(lanes_used(pair)[::2])
            (warning,) = (w for w in order[0].ask("status")["warnings"] if "not heard" in w)
            assert "by lanes 1, 2, 3 yet" in warning
            keys.reload(SAS, order[1])
            until(lambda: all(lanes_used(pair)), "both flows have a bulk lane")
            keys.reload(1, *order)
            before = packets_by_lane(pair.b, "in")[""]
            until(
                lambda at=before: packets_by_lane(pair.b, "in")[""] > at + 200, "the flow is back"
            )
    for (report,) in (to_b, to_a):
        assert report["received"] == report["highest"] == report["sent"]
        assert report["repeated"] == 0
    # The first SA has its key and its numbers from the beginning to the end.
    assert sas(pair.a)["pi-b/out"]["seq"] > seq
    # The announcements of lanes, before the other end knows them and after that.
    for gateway in order:
        assert drops(gateway).keys() <= {"dummy", "unknown-spi"}
        assert drops(gateway)["unknown-spi"] < 200


def test_new_lanes_are_used_soon_where_the_other_end_is_restarted(make_laned: MakePair) -> None:
    pair = make_laned()
    keys = Keys(pair)
    for gateway in (pair.a, pair.b):
        keys.configure(gateway, 1)
    pair.start()
    keys.reload(SAS, pair.a)
    until(lambda: drops(pair.b)["unknown-spi"], "the new lanes are announced")
    keys.configure(pair.b, SAS)
    pair.b.stop()
    pair.b.start()
    until(lambda: send_bulk(pair) and all(lanes_used(pair)), "all have bulk lanes", 30)
    assert not any("not heard" in line for line in pair.a.ask("status")["warnings"])


def test_a_reload_to_several_sas_and_back_breaks_no_connection(make_laned: MakePair) -> None:
    pair = make_laned()
    keys = Keys(pair)
    for gateway in (pair.a, pair.b):
        keys.configure(gateway, 1)
    pair.start()
    with iperf_server(pair.b.namespace, INNER[1]):
        command = ("iperf3", "-J", "-c", INNER[1], "--bidir", "-t", "60", "-b", "20M")
        transfer = pair.a.namespace.start(*command, stdout=subprocess.PIPE)
        try:
            until(lambda: packets_by_lane(pair.b, "in")[""] > 500, "it has begun")
            keys.reload(SAS, pair.b, pair.a)
            until(lambda: all(lanes_used(pair)), "it has a bulk lane both ways")
            keys.reload(1, pair.a, pair.b)
            before = packets_by_lane(pair.b, "in")[""], packets_by_lane(pair.a, "in")[""]
            until(lambda: packets_by_lane(pair.b, "in")[""] > before[0] + 500, "it goes on")
            until(lambda: packets_by_lane(pair.a, "in")[""] > before[1] + 500, "it comes back, too")
            assert transfer.poll() is None
        finally:
            end(transfer)


def use_up(gateway: LabGateway, name: str) -> None:
    """Let the ledger of a gateway that doesn't run have LEFT numbers left for an SA without ESN."""
    ledger = Ledger.open(gateway.folder / LEDGER_NAME, machine_identity())
    try:
        ledger.lease(configured_sa(gateway, name).keymat, LAST_SEQ - LEFT, LAST_SEQ)
    finally:
        ledger.close()


def test_a_lane_without_numbers_has_its_flows_carried_by_others_with_a_warning(
    make_laned: MakePair,
) -> None:
    pair = make_laned()
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(esn=False))
    use_up(pair.a, "pi-b/out.2")
    pair.start()
    carry_bulk(pair)
    out = packets_by_lane(pair.a, "out")
    assert out[".2"] == LEFT
    assert out[".3"] > out[".2"]
    assert drops(pair.a) == drops(pair.b) == {}
    cause = (
        "lane 1 carries nothing: its SA pi-b/out.2 has used its last sequence number; "
        "give it a new key"
    )
    until(lambda: pair.a.ask("tunnel", "list")["tunnels"][0]["causes"] == [cause], "it is told")
    assert cause in " ".join(pair.a.cli("tunnel", "list").stdout.split())
    assert f"warning: tunnel pi-b is up: {cause}" in pair.a.cli("status", check=False).stdout
    # Without a number left the ledger refuses it: the others start without it.
    pair.a.stop()
    pair.a.start()
    assert send_bulk(pair)["answered"] == FLOWS * COUNT
    until(lambda: pair.a.ask("tunnel", "list")["tunnels"][0]["causes"] == [cause], "it is told")
    assert pair.a.ask("sa", "show", "pi-b/out.2")["sa"]["state"] == "down"
    assert {lane for lane, count in packets_by_lane(pair.a, "out").items() if count} == {
        "",
        ".3",
        ".4",
    }
    (line, _) = [each for each in pair.a.log.read_text().splitlines() if "a lane carries" in each]
    assert "warning" in line
    assert "lane=1" in line
