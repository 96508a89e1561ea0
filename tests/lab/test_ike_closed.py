"""A trap of charon stays closed over ends, kills and starts of charon and of the gateway."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from tests.support.charon import Installation
from tests.support.cleartext import cleartext, sending_to
from tests.support.guarded import watched, with_default_route
from tests.support.ike_rig import child
from tests.support.ike_sites import TARGET, Site, start_sites
from tests.support.labtools import MakePair, StartCapture, guard, ping, reboot, until, until_planned


def restart_charon(site: Site) -> None:
    assert site.charon.stop() == 0
    site.charon.start()


def kill_charon(site: Site) -> None:
    site.charon.kill()
    site.charon.start()


def restart_gateway(site: Site) -> None:
    """Stop it as the service manager does, and start it again."""
    assert site.gateway.stop() == 0
    shutil.rmtree(site.gateway.folder / "ike")
    site.gateway.start()


def restart_both(site: Site) -> None:
    assert site.charon.stop() == 0
    restart_gateway(site)
    site.charon.start()


def test_no_restart_of_either_daemon_lets_a_packet_out(
    make_pair: MakePair,
    installed: Installation,
    tmp_path: Path,
    stack: contextlib.ExitStack,
    capture: StartCapture,
) -> None:
    pair = make_pair(inner_versions=(4,))
    sites = start_sites(pair, tmp_path, (installed,) * 2, stack, start_action="trap")
    with_default_route(pair)
    one = sites[0]
    host = one.gateway.namespace
    until(lambda: ping(host, TARGET, count=1), "a packet has brought the child", 20)
    wire = capture(host)
    with sending_to(host, TARGET):
        for restart in (restart_charon, kill_charon, restart_gateway, restart_both):
            before = one.spis()
            restart(one)
            until(lambda before=before: one.spis() - before, "another child", 30)
            until(lambda: ping(host, TARGET, count=1), "it carries", 30)
        assert cleartext(wire.stop(), TARGET) == []
        wire = capture(host)
        # In order: the trap is unloaded, and the child terminated.
        one.configure({"other": child(0, remote_ts="10.77.0.0/24")})
        one.charon.swanctl("--terminate", "--ike", "peer")
        until(lambda: cleartext(wire.path, TARGET), "it is open")


def test_nothing_leaves_from_a_boot_until_charon_has_its_traps(
    make_pair_of_one_engine: MakePair,
    installed: Installation,
    tmp_path: Path,
    stack: contextlib.ExitStack,
    capture: StartCapture,
) -> None:
    pair = make_pair_of_one_engine(inner_versions=(4,))
    sites = start_sites(pair, tmp_path, (installed,) * 2, stack, start_action="trap")
    with_default_route(pair)
    one = sites[0]
    host = one.gateway.namespace
    until(lambda: ping(host, TARGET, count=1), "a packet has brought the child", 20)
    until_planned(one.gateway, "10.2.0.0/24")
    one.charon.kill()
    one.gateway.kill()
    reboot(one.gateway)
    with watched(one.gateway):
        wire = capture(host)
        with sending_to(host, TARGET):
            one.gateway.start()
            one.charon.start()
            until(lambda: len(one.spis()) == 2, "another child", 30)
            until(lambda: ping(host, TARGET, count=1), "it carries", 30)
        assert cleartext(wire.stop(), TARGET) == []
    # In order: the trap is unloaded, the child terminated, and a boot closes nothing.
    one.configure({"other": child(0, remote_ts="10.77.0.0/24")})
    one.charon.swanctl("--terminate", "--ike", "peer")
    until(lambda: one.gateway.call("ListPolicies")["policies"] == [], "it is open")
    until_planned(one.gateway)
    one.gateway.kill()
    reboot(one.gateway)
    report = json.loads(guard(one.gateway, "status", "--json"))
    assert (report["protected"], report["ike"]) == ([], [])
