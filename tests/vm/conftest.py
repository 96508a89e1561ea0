"""Virtual machines for tests: one machine per run, shared by most tests."""

from __future__ import annotations

import compileall
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab.vm.__main__ import CHECKOUT
from lab.vm.__main__ import make_setup as make_setup_of
from lab.vm.machine import Machine
from tests.support.charon import have_built_plugin
from tests.support.debian import Debian, debian
from tests.support.guest import INSIDE, INSIDE_LIMIT, LIMIT, REPORT, Guest, MakeSetup
from tests.support.inside import FILES, IKE_FILE, InsideRun, read_report
from tests.support.libreswan import fetch_libreswan
from tests.support.matrix import mark_tiers

HERE = Path(__file__).parent
# The tests of inside/ run in the machine, started by the tests here.
collect_ignore = [] if INSIDE in os.environ else ["inside"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    mark_tiers(item for item in ours if item.path.name != "test_aarch64.py")
    if INSIDE in os.environ:
        return
    for item in ours:
        if item.path.name == "test_aarch64.py":
            item.add_marker(pytest.mark.aarch64)
        if not item.get_closest_marker("timeout"):
            limit = INSIDE_LIMIT if "inside" in item.fixturenames else LIMIT
            item.add_marker(pytest.mark.timeout(limit + 60))


@pytest.fixture(scope="session")
def make_setup() -> MakeSetup:
    """Describe a machine with the host's files; fetches the kernel if it is missing."""
    # Bytecode that a machine compiles, slowly, is lost with it.
    for folder in ("esp_gw", "lab", "tests"):
        compileall.compile_dir(CHECKOUT / folder, quiet=1)
    return partial(make_setup_of, "x86_64")


@pytest.fixture(scope="session")
def out() -> Path:
    """The host's folder mounted at /out in `guest`; results of tests inside stay there."""
    # Each of several pytest processes has its own machine.
    folder = CHECKOUT / ".vm" / f"out{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def guest(make_setup: MakeSetup, out: Path) -> Iterator[Guest]:
    """The machine shared by most tests."""
    setup = make_setup(out=out)
    with Machine(setup) as machine:
        yield Guest(machine, setup)


@pytest.fixture(scope="session")
def inside(request: pytest.FixtureRequest, guest: Guest, out: Path) -> InsideRun:
    """Run the files of inside/ that selected tests ask for, all in one pytest in the machine."""
    # All of these tests are in one file, so that one of several processes has them all.
    asked = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_inside"
    ]
    names = {params["name"] for params in asked}
    if IKE_FILE in names:
        # The machine has no network, and little time for a compiler.
        have_built_plugin()
        fetch_libreswan()
    markers = " or ".join(sorted({params["marker"] for params in asked}))
    result = guest.pytest([name for name in FILES if name in names], markers, INSIDE_LIMIT)
    return InsideRun(read_report(out / REPORT), result.status, result.tail)


@pytest.fixture(scope="module")
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Debian]:
    """The booted Debian machine of a file's RELEASE; the gateway is installed, not configured."""
    folder = tmp_path_factory.mktemp("debian")
    with debian(request.module.RELEASE, folder) as made:
        made.boot()
        yield made
    # Hundreds of megabytes, which pytest would keep.
    (folder / "disk.img").unlink(missing_ok=True)


@pytest.fixture
def running(machine: Debian) -> Debian:
    """The machine with the gateway running by its good configuration, whatever was before."""
    if not machine.is_reached():
        machine.configure(machine.config)
        machine.ok("systemctl", "restart", "esp-gw")
    return machine
