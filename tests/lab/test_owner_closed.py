"""Prefixes that sessions of an IKE daemon leave closed: no packet goes out in the clear."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import pytest

from esp_gw.demo.gateways import LabGateway
from tests.support.cleartext import cleartext, sending_to
from tests.support.guarded import watched, with_default_route
from tests.support.labtools import (
    MakePair,
    StartCapture,
    drops,
    edit,
    guard,
    reboot,
    until,
    until_planned,
)
from tests.support.owner_client import Session, Watcher
from tests.support.owner_rig import child, sessions, start, target

ELSEWHERE = "198.51.100.9"
"""An address that a protected default route alone has."""


def open_session(
    gateway: LabGateway, stack: contextlib.ExitStack, *, take_over: bool = False
) -> Session:
    session = Session(gateway.socket, take_over=take_over)
    stack.callback(session.close)
    return session


def left(gateway: LabGateway) -> list[str]:
    """Return the remote prefixes of what a former session has left closed."""
    policies = gateway.call("ListPolicies")["policies"]
    return [
        pair["remote"]
        for policy in policies
        if policy["name"].startswith("ike-left:")
        for pair in policy["selectors"]
    ]


def await_drops(gateway: LabGateway) -> None:
    """Wait until the gateway has dropped more packets for want of an SA."""
    before = drops(gateway)["no-sa"]
    until(lambda: drops(gateway)["no-sa"] > before + 20, "packets meet a closed policy")


def test_a_new_session_opens_nothing_but_by_its_own_requests(
    make_pair: MakePair, stack: contextlib.ExitStack, capture: StartCapture
) -> None:
    pair = with_default_route(start(make_pair))
    host = pair.a.namespace
    both = sessions(pair, stack)
    for version in (4, 6):
        each = child(version, inner=version)
        for side, session in enumerate(both):
            policy = each.policy(side, f"v{version}")
            session.call("InstallChild", sas=each.sas(side), policies=[policy])
    lan = [{"local": "0.0.0.0/0", "remote": "10.9.0.0/24"}]
    both[0].call("PutPolicy", id="lan", action="bypass", selectors=lan)
    wire = capture(host)
    with sending_to(host, target(4), target(6)):
        for _ in range(2):
            fresh = open_session(pair.a, stack)
            assert (fresh.found["sas"], fresh.found["policies"]) == ([], [])
            await_drops(pair.a)
            assert sorted(left(pair.a)) == ["10.2.0.0/24", "fd00:2::/64"]
        watcher = Watcher(pair.a.socket)
        stack.callback(watcher.close)
        watcher.socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            watcher.event("Acquire")
        # Wider than what was left.
        wide = {"selectors": [{"local": "10.1.0.0/16", "remote": "10.2.0.0/16"}], "sa": None}
        fresh.call("PutPolicy", **child(4).policy(0, "again", **wide))
        assert left(pair.a) == ["fd00:2::/64"]
        await_drops(pair.a)
        assert cleartext(wire.stop(), target(4), target(6)) == []
        wire = capture(host)
        fresh.call("RemovePolicy", id="again")
        until(lambda: cleartext(wire.path, target(4)), "what is removed in order is open")
        assert cleartext(wire.stop(), target(6)) == []


@pytest.mark.parametrize("ending", ["stop", "damage"])
def test_a_start_without_records_keeps_closed_what_was(
    make_pair: MakePair, stack: contextlib.ExitStack, capture: StartCapture, ending: str
) -> None:
    pair = with_default_route(start(make_pair))
    host = pair.a.namespace
    targets = (target(4), target(6), ELSEWHERE)
    (session, _) = sessions(pair, stack)
    for version in (4, 6):
        policy = child(version, inner=version).policy(0, f"v{version}", sa=None)
        session.call("PutPolicy", **policy)
    everything = [{"local": "10.1.0.0/24", "remote": "0.0.0.0/0"}]
    rest = child(5).policy(0, "rest", sa=None, selectors=everything, priority=2000)
    session.call("PutPolicy", **rest)
    wire = capture(host)
    with sending_to(host, target(4), target(6), f"{ELSEWHERE}@10.1.0.1"):
        await_drops(pair.a)
        file = pair.a.folder / "ike" / "held.db"
        if ending == "stop":
            assert pair.a.stop() == 0
            # As the service manager does after a stop.
            shutil.rmtree(file.parent)
        else:
            pair.a.kill()
            content = file.read_bytes()
            file.write_bytes(content[:8192] + os.urandom(len(content) - 8192))
        pair.a.start()
        await_drops(pair.a)
        assert sorted(left(pair.a)) == ["0.0.0.0/0", "10.2.0.0/24", "fd00:2::/64"]
        taken = open_session(pair.a, stack, take_over=True)
        assert taken.found["policies"] == []
        await_drops(pair.a)
        # Nor is it lost with a crash, or with another session.
        pair.a.kill()
        pair.a.start()
        again = open_session(pair.a, stack)
        await_drops(pair.a)
        assert cleartext(wire.stop(), *targets) == []
        wire = capture(host)
        again.call("FlushOwner")
        assert left(pair.a) == []
        until(lambda: cleartext(wire.path, target(4)), "what is flushed in order is open")


def test_what_the_configuration_protects_by_now_is_left_to_it(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = with_default_route(start(make_pair_of_one_engine))
    (session, _) = sessions(pair, stack)
    session.call("PutPolicy", **child(4).policy(0, "v4", sa=None))
    pair.a.stop()
    shutil.rmtree(pair.a.folder / "ike")
    own = {"name": "own", "action": "discard", "local_ts": "0.0.0.0/0", "remote_ts": "10.2.0.0/24"}
    edit(pair.a, lambda document: document.update(policies=[own]))
    pair.a.start()
    assert left(pair.a) == []
    edit(pair.a, lambda document: document.pop("policies"))
    pair.a.call("Reload")
    assert "10.2.0.0/24" not in pair.a.namespace.ip("route", "show", "table", "all")


def test_a_boot_keeps_closed_what_the_owners_configuration_has(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack, capture: StartCapture
) -> None:
    pair = with_default_route(start(make_pair_of_one_engine))
    host = pair.a.namespace
    both = sessions(pair, stack)
    trap = child(4)
    # It has an SA at the end, as most of the time.
    both[0].call("PutPolicy", **trap.policy(0, "v4", sa=None))
    both[0].call("InstallChild", sas=trap.sas(0), policies=[trap.policy(0, "v4", trap=True)])
    away = [{"local": "fd00:1::/64", "remote": "fd00:2::/64"}]
    both[0].call("PutPolicy", id="shunt", action="discard", selectors=away)
    guest = child(6, inner=6)
    alone = [{"local": "10.1.0.0/24", "remote": "10.3.0.0/24"}]
    fields = {"selectors": alone}
    both[0].call(
        "InstallChild",
        sas=guest.sas(0, **fields),
        policies=[guest.policy(0, "guest", **fields)],
    )
    until_planned(pair.a, "10.2.0.0/24", "fd00:2::/64")
    pair.a.kill()
    reboot(pair.a)
    with watched(pair.a):
        wire = capture(host)
        with sending_to(host, target(4), target(6)):
            report = json.loads(guard(pair.a, "status", "--json"))
            assert report["state"] == "closed"
            # A child without a trap comes and goes with its peer.
            assert report["protected"] == report["ike"] == ["10.2.0.0/24", "fd00:2::/64"]
            assert "closed until an IKE daemon protects it again" in report["warnings"][0]
            pair.a.start()
            await_drops(pair.a)
            assert sorted(left(pair.a)) == ["10.2.0.0/24", "fd00:2::/64"]
            assert pair.a.stop() == 0
    assert cleartext(wire.stop(), target(4), target(6)) == []
    # Another boot, without the guard and before any session.
    reboot(pair.a)
    pair.a.start()
    wire = capture(host)
    with sending_to(host, target(4), target(6)):
        again = open_session(pair.a, stack)
        again.call("PutPolicy", **trap.policy(0, "v4", sa=None))
        again.call("PutPolicy", id="shunt", action="discard", selectors=away)
        assert left(pair.a) == []
        await_drops(pair.a)
    assert cleartext(wire.stop(), target(4), target(6)) == []
    # In order: nothing of it is closed after a boot.
    again.call("RemovePolicy", id="v4")
    again.call("RemovePolicy", id="shunt")
    assert pair.a.stop() == 0
    reboot(pair.a)
    pair.a.start()
    assert "10.2.0.0/24" not in host.ip("route", "show", "table", "all")


def test_an_opened_guard_forgets_what_no_ike_daemon_will_open(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair_of_one_engine)
    (session, _) = sessions(pair, stack)
    session.call("PutPolicy", **child(4).policy(0, "v4", sa=None))
    # Beside a gateway it lasts until the next start.
    guard(pair.a, "down", "--force")
    assert pair.a.stop() == 0
    reboot(pair.a)
    pair.a.start()
    assert left(pair.a) == ["10.2.0.0/24"]
    (warning,) = [w for w in pair.a.call("GetStatus")["warnings"] if "IKE" in w]
    assert "nothing goes to 10.2.0.0/24" in warning
    assert "esp-gw guard down" in warning
    assert pair.a.stop() == 0
    guard(pair.a, "down")
    reboot(pair.a)
    pair.a.start()
    assert left(pair.a) == []
