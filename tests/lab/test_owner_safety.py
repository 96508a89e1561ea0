"""SAs and policies of an IKE daemon's sessions: closed, kept and secret over ends and kills."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from ipaddress import ip_address

import pytest

from esp_gw.demo.netns import add_address, end
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.traffic import iperf_server
from esp_gw.errors import ControlError
from tests.support.guarded import assert_closed, watched, with_default_route
from tests.support.labtools import (
    MakePair,
    StartCapture,
    StartTap,
    esp_packets,
    ping,
    until,
)
from tests.support.owner_client import Session, Watcher, error_of
from tests.support.owner_rig import child, sessions, start, target


def test_a_terminated_child_leaves_no_cleartext_on_the_wire(
    make_pair: MakePair, stack: contextlib.ExitStack, tap: StartTap
) -> None:
    pair = start(make_pair)
    host = pair.a.namespace
    # A default route is the way out that a protected packet would take by mistake.
    host.ip("route", "add", "default", "via", "192.0.2.2")
    wire = tap(host, ip_address(target(4)).packed)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    assert ping(host, target(4), count=3) == 3
    both[0].call("RemoveSas", sas=first.refs(0))
    assert ping(host, target(4), count=3) == 0
    # The way that a program may go by itself.
    bound = ("ping", "-c", "1", "-W", "1", "-I", "wan", target(4))
    assert host.run(*bound, check=False).returncode != 0
    # Neither does it while the gateway is away, nor after its restart.
    pair.a.kill()
    assert ping(host, target(4), count=3) == 0
    assert host.run(*bound, check=False).returncode != 0
    pair.a.start()
    assert ping(host, target(4), count=3) == 0
    report = wire.finish()
    assert (report.cleartext, report.leaked) == (0, 0), report.examples
    again = Session(pair.a.socket, take_over=True)
    stack.callback(again.close)
    again.call("RemovePolicy", id="office")
    assert "10.2.0.0/24" not in host.ip("route", "show", "table", "all")


def test_children_go_on_after_a_kill_and_repeat_no_iv(
    make_pair: MakePair, stack: contextlib.ExitStack, capture: StartCapture
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    wire = capture(pair.a.namespace)
    for _ in range(3):
        with iperf_server(pair.b.namespace, target(4)):
            client = pair.a.namespace.start("iperf3", "-c", target(4), "-t", "30")
            until(lambda: pair.a.call("GetStats")["packets_out"] > 2000, "traffic flows")
            pair.a.kill()
            end(client)
        pair.a.start()
        until(lambda: ping(pair.a.namespace, target(4), count=1), "the tunnel is back")
    seen = Counter((packet.spi, packet.iv) for packet in esp_packets(wire.stop()))
    assert {spi for spi, _ in seen} == set(first.spis)
    assert sum(seen.values()) > 6000
    assert [key for key, count in seen.items() if count > 1] == []
    found = Session(pair.a.socket, take_over=True)
    stack.callback(found.close)
    assert {sa["spi"] for sa in found.found["sas"]} == set(first.spis)
    assert [policy["id"] for policy in found.found["policies"]] == ["office"]


def test_a_restart_in_order_keeps_the_children(
    make_pair: MakePair, stack: contextlib.ExitStack, capture: StartCapture
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    watcher = Watcher(pair.a.socket)
    stack.callback(watcher.close)
    child(1).install(both)
    wire = capture(pair.a.namespace)
    assert ping(pair.a.namespace, target(4), count=5) == 5
    assert pair.a.stop() == 0
    watcher.event("Stopping")
    pair.a.start()
    assert ping(pair.a.namespace, target(4), count=5) == 5
    ivs = Counter((packet.spi, packet.iv) for packet in esp_packets(wire.stop()))
    assert len(ivs) == sum(ivs.values()) == 20


def test_a_session_that_does_not_take_over_flushes_what_the_former_one_left(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    both[0].close()
    # Traffic goes on without a session.
    assert ping(pair.a.namespace, target(4), count=3) == 3
    taken = Session(pair.a.socket, take_over=True)
    stack.callback(taken.close)
    assert len(taken.found["sas"]) == 2
    fresh = Session(pair.a.socket, take_over=False)
    stack.callback(fresh.close)
    assert (fresh.found["sas"], fresh.found["policies"]) == ([], [])
    # The former session has ended.
    assert error_of(taken.line()) == "Refused"
    assert taken.line() == b""
    assert pair.a.call("ListSas")["sas"] == []
    # Their prefixes stay closed for a while.
    assert "10.2.0.0/24" in pair.a.namespace.ip("route", "show", "table", "all")
    with pytest.raises(ControlError, match="removed before"):
        fresh.call("InstallChild", sas=first.sas(0))


def test_keys_of_ike_are_in_no_state_log_or_answer(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    assert ping(pair.a.namespace, target(4), count=3) == 3
    both[0].call("PutPolicy", **child(2).policy(0, "other", sa=None, trap=False))
    for bad in ({"replay_window": 99999}, {"suite": "aes128gcm16"}, {"more": 1}):
        with pytest.raises(ControlError) as refusal:
            both[0].call("InstallChild", sas=[first.sas(0)[0] | bad])
        assert "\n" not in str(refusal.value)
        assert first.keys[0] not in str(refusal.value)
    answers = [
        pair.a.call(method)
        for method in ("GetStatus", "ListSas", "ListTunnels", "ListPolicies", "GetStats")
    ]
    answers.append(both[0].call("QuerySas"))
    with pytest.raises(ControlError, match="shown to nobody"):
        pair.a.call("GetSa", name=answers[1]["sas"][0]["name"], reveal_keys=True)
    pair.a.stop()
    kept = {path for path in pair.a.folder.rglob("*") if path.is_file()}
    secret = pair.a.folder / "ike"
    assert (secret.stat().st_mode & 0o777, (secret / "held.db").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    holders = set()
    for key in first.keys:
        assert key not in json.dumps(answers)
        holders |= {
            path
            for path in kept
            if key.encode() in path.read_bytes() or bytes.fromhex(key) in path.read_bytes()
        }
    assert {path.parent.name for path in holders} == {"ike"}
    # The guard's plan says nothing of a child, and neither does the state of the CLI.
    for name in ("guard.json", "guard.backup.json", "added.json"):
        path = pair.a.folder / name
        assert not path.exists() or b"10.2.0.0" not in path.read_bytes()
    pair.a.start()
    again = Session(pair.a.socket, take_over=False)
    stack.callback(again.close)
    content = (secret / "held.db").read_bytes()
    assert not any(key.encode() in content for key in first.keys)


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_the_guard_keeps_closed_what_a_child_protected_and_writes_none_of_it(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack, tap: StartTap, ending: str
) -> None:
    pair = with_default_route(start(make_pair_of_one_engine))
    log = pair.a.folder / "guard.log"
    (session, _) = sessions(pair, stack)
    with watched(pair.a):
        for version in (4, 6):
            policy = child(1, version).policy(0, f"v{version}", sa=None, trap=False)
            session.call("PutPolicy", **policy)
        getattr(pair.a, ending)()
        assert_closed(pair, tap)
        if ending == "stop":
            # As the service manager does after a stop.
            shutil.rmtree(pair.a.folder / "ike")
        before = len(log.read_text())
        pair.a.namespace.ip("route", "flush", "table", "4500")
        until(lambda: "unreachable 10.2.0.0/24" in routes(pair), "the watcher repairs it", 20)
        assert len(log.read_text()) > before
        assert_closed(pair, tap)
    for path in pair.a.folder.glob("guard*.json"):
        assert b"10.2.0.0" not in path.read_bytes()


def routes(pair: GatewayPair) -> str:
    """Return a's routes in the gateway's table."""
    return pair.a.namespace.ip("route", "show", "table", "all")


def test_a_child_whose_address_is_gone_at_a_start_is_closed_until_that_is_back(
    make_pair: MakePair, stack: contextlib.ExitStack, tap: StartTap
) -> None:
    pair = start(make_pair)
    host = pair.a.namespace
    add_address(host, "192.0.2.9/24")
    both = sessions(pair, stack)
    gone, stays = child(1), child(2, inner=6, outer=6)
    gone.outer = ("192.0.2.9", "192.0.2.2")
    for each, name in ((gone, "gone"), (stays, "stays")):
        for side, session in enumerate(both):
            session.call("InstallChild", sas=each.sas(side), policies=[each.policy(side, name)])
    assert ping(host, target(4), count=2) == 2
    wire = tap(host, ip_address(target(4)).packed)
    pair.a.kill()
    host.ip("address", "del", "192.0.2.9/24", "dev", "wan")
    pair.a.start()
    assert ping(host, target(4), count=2) == 0
    assert ping(host, target(6), count=2) == 2
    add_address(host, "192.0.2.9/24")
    until(lambda: ping(host, target(4), count=1) == 1, "the child is back")
    report = wire.finish()
    assert (report.cleartext, report.leaked) == (0, 0), report.examples


def test_a_child_ends_while_the_tun_is_down_and_another_begins_once_it_is_up(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    host = pair.a.namespace
    both = sessions(pair, stack)
    first, second = child(1), child(2)
    first.install(both)
    assert ping(host, target(4), count=1) == 1
    host.ip("link", "set", "esp0", "down")
    until(lambda: pair.a.call("GetStatus")["warnings"], "the gateway has seen it")
    with pytest.raises(ControlError, match="is down, and nothing has changed"):
        both[0].call("InstallChild", sas=second.sas(0))
    last = both[0].call("RemoveSas", sas=first.refs(0))["sas"]
    assert [sa["packets"] for sa in last] == [1, 1]
    assert both[0].call("QuerySas")["sas"] == []
    both[0].call("PutPolicy", **child(3, inner=6).policy(0, "trap", sa=None))
    both[0].call("RemovePolicy", id="office")
    host.ip("link", "set", "esp0", "up")
    until(lambda: not pair.a.call("GetStatus")["warnings"], "it is up again")
    found = host.ip("-6", "route", "show", "table", "4500")
    assert "fd00:2::/64 dev esp0" in found and "unreachable fd00:2::/64" in found
    second.inner = first.inner
    both[1].call("RemoveSas", sas=first.refs(1))
    second.install(both)
    until(lambda: ping(host, target(4), count=1), "the next child carries")
