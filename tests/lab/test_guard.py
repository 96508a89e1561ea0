"""Protected prefixes stay closed whenever the gateway doesn't carry them, and open by an act."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import GatewayPair
from esp_gw.errors import FAILED, WRONG_CONFIG
from esp_gw.ledger.ledger import Ledger
from tests.support.guarded import (
    assert_closed,
    fail_to_start,
    misspell,
    own_folder,
    watched,
    with_default_route,
)
from tests.support.labtools import (
    MakePair,
    StartTap,
    edit,
    guard,
    network,
    ping,
    reboot,
    running,
    tunnel,
    until,
)
from tests.support.ledgers import machine

HOLD_PORT = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 4500))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def routed(make_pair_of_one_engine: MakePair) -> GatewayPair:
    """A pair whose side a has a default route, the way out that cleartext would take."""
    return with_default_route(make_pair_of_one_engine(inner_versions=(4, 6)))


@pytest.fixture
def routed_of_each_engine(make_pair: MakePair) -> GatewayPair:
    """A pair like `routed`, of each engine."""
    return with_default_route(make_pair(inner_versions=(4, 6)))


def break_syntax(gateway: LabGateway) -> None:
    settings = f"gateway: {json.dumps(gateway.settings)}\n"
    gateway.config.write_text(f"{settings}tunnels: [oops\n")


def delete_ledger(gateway: LabGateway) -> None:
    (gateway.folder / "ledger.db").unlink()


def foreign_ledger(gateway: LabGateway) -> None:
    delete_ledger(gateway)
    Ledger.create(gateway.folder / "ledger.db", machine("f"))


def delete_key(gateway: LabGateway) -> None:
    for key in gateway.config.parent.rglob("*.key"):
        key.unlink()


FAULTS = [misspell, delete_ledger, foreign_ledger, delete_key]


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_start_that_fails_after_a_clean_stop_leaves_it_closed(
    routed: GatewayPair, tap: StartTap, spoil: Callable[[LabGateway], None]
) -> None:
    routed.start()
    assert ping(routed.a.namespace, "10.2.0.1", count=2) == 2
    assert routed.a.stop() == 0
    assert_closed(routed, tap)
    spoil(routed.a)
    fail_to_start(routed.a)
    assert_closed(routed, tap)


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_start_that_fails_after_a_boot_leaves_it_closed(
    routed: GatewayPair, tap: StartTap, spoil: Callable[[LabGateway], None]
) -> None:
    routed.a.start()
    assert routed.a.stop() == 0
    reboot(routed.a)
    spoil(routed.a)
    fail_to_start(routed.a)
    assert_closed(routed, tap)


@pytest.mark.parametrize("spoil", [delete_ledger, foreign_ledger])
def test_a_first_start_that_the_ledger_refuses_leaves_it_closed(
    routed: GatewayPair, tap: StartTap, spoil: Callable[[LabGateway], None]
) -> None:
    spoil(routed.a)
    fail_to_start(routed.a)
    assert_closed(routed, tap)


@pytest.mark.parametrize("before", ["never run", "stopped", "rebooted"])
def test_a_port_that_an_ordinary_user_holds_leaves_it_closed(
    routed_of_each_engine: GatewayPair, tap: StartTap, before: str
) -> None:
    routed = routed_of_each_engine
    if before != "never run":
        routed.a.start()
        assert routed.a.stop() == 0
    if before == "rebooted":
        reboot(routed.a)
    with running(routed.a.namespace, HOLD_PORT):
        fail_to_start(routed.a)
        assert_closed(routed, tap)


def test_after_the_fault_is_mended_the_tunnel_carries_again(routed: GatewayPair) -> None:
    routed.start()
    content = routed.a.config.read_text()
    assert routed.a.stop() == 0
    break_syntax(routed.a)
    fail_to_start(routed.a)
    routed.a.config.write_text(content)
    routed.a.start()
    assert ping(routed.a.namespace, "10.2.0.1", count=2) == 2
    assert ping(routed.a.namespace, "fd00:2::1", count=2) == 2


def test_released_at_the_end_nothing_is_left(make_pair_of_one_engine: MakePair) -> None:
    pair = make_pair_of_one_engine()
    before = network(pair.a.namespace)
    pair.a.options = ("--release",)
    pair.start()
    assert pair.a.stop() == 0
    assert network(pair.a.namespace) == before
    assert "esp_gw" not in pair.a.namespace.run("nft", "list", "tables").stdout


# The watcher


def test_the_guard_alone_holds_the_last_plan_after_a_boot(
    routed: GatewayPair, tap: StartTap
) -> None:
    routed.a.start()
    assert routed.a.stop() == 0
    reboot(routed.a)
    with watched(routed.a):
        assert_closed(routed, tap)
        report = json.loads(guard(routed.a, "status", "--json"))
        assert (report["state"], report["gateway_runs"], report["watched"]) == (
            "closed",
            False,
            True,
        )
        assert report["protected"] == ["10.2.0.0/24", "fd00:2::/64"]
    assert_closed(routed, tap)


@pytest.mark.parametrize("damaged", [("guard.json",), ("guard.backup.json",)])
def test_a_damaged_copy_of_the_plan_falls_back_to_the_other(
    routed: GatewayPair, tap: StartTap, damaged: tuple[str, ...]
) -> None:
    routed.a.start()
    assert routed.a.stop() == 0
    reboot(routed.a)
    break_syntax(routed.a)
    for name in damaged:
        path = routed.a.folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
    with watched(routed.a):
        assert_closed(routed, tap)
    if damaged == ("guard.json",):
        assert path.read_bytes() == whole


def test_without_a_readable_plan_the_configuration_is_held_even_without_its_keys(
    routed: GatewayPair, tap: StartTap
) -> None:
    routed.a.start()
    assert routed.a.stop() == 0
    reboot(routed.a)
    delete_key(routed.a)
    for path in routed.a.folder.glob("guard*.json"):
        path.write_bytes(b"{")
    with watched(routed.a):
        assert_closed(routed, tap)


def test_where_nothing_is_readable_the_guard_fails_and_says_so(routed: GatewayPair) -> None:
    break_syntax(routed.a)
    config = str(routed.a.config)
    done = routed.a.cli("guard", "run", "--config", config, check=False)
    assert "nothing is guarded" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    # The unit is failed, and not tried again.
    assert done.returncode == WRONG_CONFIG
    routed.a.config.unlink()
    assert routed.a.cli("guard", "run", "--config", config, check=False).returncode == FAILED


def test_the_guard_takes_over_from_a_killed_gateway_and_gives_way_to_the_next(
    routed_of_each_engine: GatewayPair, tap: StartTap
) -> None:
    routed = routed_of_each_engine
    host = routed.a.namespace
    with watched(routed.a):
        routed.start()
        carrying = network(host)
        assert ping(host, "10.2.0.1", count=2) == 2
        routed.a.kill()
        assert_closed(routed, tap)
        # Nobody but the watcher is left to repair it.
        host.run("nft", "flush", "ruleset")
        host.ip("route", "flush", "table", "4500")
        until(lambda: "unreachable" in host.ip("route", "show", "table", "4500"), "routes are back")
        until(lambda: "esp_gw" in host.run("nft", "list", "tables").stdout, "the table is back")
        assert_closed(routed, tap)
        routed.a.start()
        assert network(host) == carrying
        assert ping(host, "10.2.0.1", count=2) == 2


@pytest.mark.parametrize("order", ["the network first", "the guard first"])
def test_a_connected_network_inside_a_protected_prefix_stays_reachable(
    make_pair_of_one_engine: MakePair, order: str
) -> None:
    """An administrator on such a network is not locked out, whenever its interface comes up."""
    pair = make_pair_of_one_engine()
    host, admin = pair.a.namespace, pair.b.namespace
    edit(
        pair.a, lambda config: next(iter(config["tunnels"].values())).update(remote_ts="10.0.0.0/8")
    )

    def come_up() -> None:
        host.ip("link", "add", "lan7", "type", "veth", "peer", "name", "eth7", "netns", admin.name)
        for namespace, device, address in ((host, "lan7", "10.7.0.1"), (admin, "eth7", "10.7.0.9")):
            namespace.ip("link", "set", device, "up")
            add_address(namespace, f"{address}/24", device)

    if order == "the network first":
        come_up()
    with watched(pair.a):
        if order == "the guard first":
            come_up()
        until(lambda: ping(admin, "10.7.0.1", count=1), "the administrator reaches the gateway")
        until(lambda: ping(host, "10.7.0.9", count=1), "and the gateway the administrator")
    pair.a.start()
    until(lambda: ping(admin, "10.7.0.1", count=1), "also while the gateway runs")


def test_down_is_refused_while_the_gateway_runs_and_opens_it_when_forced(
    routed_of_each_engine: GatewayPair, tap: StartTap
) -> None:
    routed = routed_of_each_engine
    host = routed.a.namespace
    before = network(host)
    with watched(routed.a):
        routed.start()
        said = guard(routed.a, "down", check=False)
        assert "esp-gw runs" in said
        assert len(said.splitlines()) == 1
        assert "unreachable 10.2.0.0/24" in host.ip("route", "show", "table", "4500")
        guard(routed.a, "down", "--force")
        until(lambda: "unreachable" not in host.ip("route", "show", "table", "4500"), "it is open")
        assert ping(host, "10.2.0.1", count=2) == 2
        until(
            lambda: any("guard is open" in w for w in routed.a.ask("status")["warnings"]),
            "status tells of it",
        )
        assert routed.a.stop() == 0
        assert network(host) == before
        wire = tap(host)
        host.run("ping", "-c1", "-W1", "-I", "10.1.0.1", "10.2.0.1", check=False)
        assert wire.finish().cleartext
        # Opening lasts until the next start.
        routed.a.start()
        assert routed.a.stop() == 0
        assert_closed(routed, tap)


def test_down_opens_a_stopped_gateway_and_status_tells(routed: GatewayPair) -> None:
    host = routed.a.namespace
    before = network(host)
    routed.a.start()
    assert routed.a.stop() == 0
    assert "closed" in guard(routed.a, "status")
    with watched(routed.a):
        assert "removed" in guard(routed.a, "down")
        assert network(host) == before
        assert "guard: open" in guard(routed.a, "status", check=False)
    assert guard(routed.a, "down") == "nothing was closed\n"


def test_a_guard_of_another_state_directory_leaves_a_running_gateway_alone(
    routed: GatewayPair, tmp_path: Path
) -> None:
    host = routed.a.namespace
    routed.start()
    assert routed.a.stop() == 0
    with watched(routed.a):
        own_folder(routed.a, tmp_path / "other")
        edit(routed.a, lambda config: tunnel(config)["remote_ts"].append("10.3.0.0/24"))
        routed.a.start()
        # Up to the gateway's claim of the table the watcher may have put its own plan in place.
        until(
            lambda: "unreachable 10.3.0.0/24" in host.ip("route", "show", "table", "4500"),
            "the gateway's routes are there",
        )
        carrying, words = network(host), routed.a.log.read_text().count("another program")
        # The watcher looks after each change.
        for number in range(3):
            host.ip("route", "add", f"203.0.113.{number}", "via", "192.0.2.2")
            assert ping(host, "10.2.0.1", count=3) == 3
            host.ip("route", "del", f"203.0.113.{number}")
        assert network(host) == carrying
        assert routed.a.log.read_text().count("another program") == words
        log, refused = routed.a.folder / "guard.log", "the gateway of esp0 uses routing table 4500"
        # The watcher may rest from a look at the other's start.
        until(lambda: refused in log.read_text(), "the watcher tells of it")
        assert log.read_text().count(refused) == 1


def test_without_a_plan_configuration_and_additions_are_held_and_status_knows(
    routed: GatewayPair, tap: StartTap
) -> None:
    status = json.loads(guard(routed.a, "status", "--json", check=False))
    assert status["state"] == "not closed"
    routed.a.start()
    routed.a.cli("policy", "add", "x", "--action", "discard", "--remote-ts", "10.9.0.0/24")
    assert routed.a.stop() == 0
    reboot(routed.a)
    for path in routed.a.folder.glob("guard*.json"):
        path.write_bytes(b"{")
    status = json.loads(guard(routed.a, "status", "--json", check=False))
    assert (status["state"], len(status["warnings"])) == ("not closed", 1)
    with watched(routed.a):
        status = json.loads(guard(routed.a, "status", "--json"))
        assert status["state"] == "closed"
        assert status["protected"] == ["10.2.0.0/24", "10.9.0.0/24", "fd00:2::/64"]
        assert_closed(routed, tap)
    # The guard has written a plan.
    assert status["warnings"] == []


def test_what_others_remove_from_the_guard_is_a_warning_of_its_log(routed: GatewayPair) -> None:
    host, log = routed.a.namespace, routed.a.folder / "guard.log"
    with watched(routed.a):
        host.run("nft", "flush", "ruleset")
        until(lambda: "esp_gw" in host.run("nft", "list", "tables").stdout, "the table is back")
        until(lambda: "another program removed" in log.read_text(), "the log tells of it")
    assert "nftables table esp_gw" in log.read_text()
