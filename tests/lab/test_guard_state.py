"""The guard's state directory in a bad state: read-only, full, another user's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair
from tests.support.disks import BALLAST, fill, small_disk
from tests.support.guarded import (
    assert_closed,
    fail_to_start,
    misspell,
    own_folder,
    release_kernel,
    watched,
    with_default_route,
)
from tests.support.labtools import MakePair, StartTap, edit, guard, ping, reboot, until


@pytest.fixture
def routed(make_pair_of_one_engine: MakePair) -> GatewayPair:
    """A pair whose side a has a default route, the way out that cleartext would take."""
    return with_default_route(make_pair_of_one_engine(inner_versions=(4, 6)))


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder a read-only filesystem, as the kernel does after an error of an SD card."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("locks", ["made before", "never made"])
def test_a_read_only_state_directory_is_held_closed_after_a_boot(
    routed: GatewayPair, tap: StartTap, tmp_path: Path, locks: str
) -> None:
    state = tmp_path / "state"
    own_folder(routed.a, state)
    routed.a.start()
    assert routed.a.stop() == 0
    forget(routed.a, state)
    if locks == "never made":
        for lock in state.glob("*.lock"):
            lock.unlink()
    with read_only(state):
        with watched(routed.a):
            assert_closed(routed, tap)
            assert "guard: closed" in guard(routed.a, "status")
        release_kernel(routed.a)
        fail_to_start(routed.a)
        assert_closed(routed, tap)


def test_a_mark_that_can_not_be_removed_opens_nothing(routed: GatewayPair, tap: StartTap) -> None:
    routed.a.start()
    assert routed.a.stop() == 0
    reboot(routed.a)
    (routed.a.folder / "guard.opened" / "in the way").mkdir(parents=True)
    with watched(routed.a):
        assert_closed(routed, tap)
    release_kernel(routed.a)
    misspell(routed.a)
    fail_to_start(routed.a)
    assert_closed(routed, tap)


@pytest.mark.parametrize("plan", ["written before", "never written"])
def test_a_full_state_directory_is_held_closed_after_a_boot(
    routed: GatewayPair, tap: StartTap, tmp_path: Path, plan: str
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        edit(routed.a, lambda config: config["gateway"].update(state_dir=str(disk)))
        routed.a.cli("ledger", "create", "--config", str(routed.a.config))
        routed.b.start()
        if plan == "written before":
            routed.a.start()
            assert routed.a.stop() == 0
            release_kernel(routed.a)
        fill(disk)
        with watched(routed.a):
            assert_closed(routed, tap)
            assert "guard: closed" in guard(routed.a, "status")
        release_kernel(routed.a)
        before = len(routed.a.log.read_text()) if routed.a.log.exists() else 0
        fail_to_start(routed.a)
        *others, error = routed.a.log.read_text()[before:].splitlines()
        assert error.startswith(f"esp-gw: error: {disk}/ledger.db: ")
        assert error.endswith("free some space on its file system")
        assert not any("Errno" in line for line in others), others
        assert_closed(routed, tap)
        (disk / BALLAST).unlink()
        routed.a.start()
        assert ping(routed.a.namespace, "10.2.0.1", count=2) == 2


# Root as the systemd service is: no files of others.
CONFINED = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw")


@contextlib.contextmanager
def watched_without_privilege(gateway: LabGateway) -> Iterator[Path]:
    """Run a guard that must not touch files of other users; yields its log, once it guards."""
    path = gateway.folder / "confined.log"
    run = (*CONFINED, sys.executable, "-m", "esp_gw.cli.main", "guard", "run")
    with path.open("w") as log:
        process = gateway.namespace.start(
            *run, "--config", str(gateway.config), stderr=log.fileno()
        )
    try:
        until(lambda: "guarding" in path.read_text(), "the guard guards")
        yield path
    finally:
        assert end(process) == 0, path.read_text()


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_state_directory_of_another_user_is_held_closed_and_repaired(
    routed: GatewayPair, tap: StartTap, tmp_path: Path, when: str
) -> None:
    state = tmp_path / "state"
    own_folder(routed.a, state)
    routed.a.start()
    assert routed.a.stop() == 0
    forget(routed.a, state)
    if when == "before the start":
        give_away(state)
    with watched_without_privilege(routed.a) as log:
        give_away(state)
        assert_closed(routed, tap)
        release_kernel(routed.a)
        closed = "table inet esp_gw"
        host = routed.a.namespace
        until(lambda: closed in host.run("nft", "list", "tables").stdout, "the guard repairs")
        assert_closed(routed, tap)
        status = (*CONFINED, sys.executable, "-m", "esp_gw.cli.main", "guard", "status")
        told = host.run(*status, "--config", str(routed.a.config)).stdout
        assert told.startswith("guard: closed")
        assert "Traceback" not in log.read_text()


def forget(gateway: LabGateway, state: Path) -> None:
    """Remove what a reboot removes, for a state directory of its own."""
    guard(gateway, "down")
    (state / "guard.opened").unlink()


def give_away(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)


def test_what_root_writes_into_the_directory_belongs_to_the_owner_of_the_directory(
    routed: GatewayPair, tmp_path: Path
) -> None:
    """After a run by hand the service must be able to read its own state."""
    state = tmp_path / "state"
    own_folder(routed.a, state)
    give_away(state)
    routed.a.start()
    routed.a.cli("policy", "add", "x", "--action", "discard", "--remote-ts", "10.9.0.0/24")
    assert routed.a.stop() == 0
    guard(routed.a, "down")
    owners = {path.name: path.stat().st_uid for path in state.iterdir()}
    assert {"added.json", "guard.json", "guard.opened", "ledger.db", "tables.json"} <= set(owners)
    assert set(owners.values()) == {65534}, owners
