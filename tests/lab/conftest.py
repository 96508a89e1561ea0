"""Labs for tests: real daemons in network namespaces. They fail without root."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from esp_gw.demo.netns import Namespace
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.tap import Tap
from tests.support.charon import Installation, build_plugin
from tests.support.engines import ENGINES
from tests.support.evidence import RecordProperty, record_marked
from tests.support.ike_rig import End, await_child, start, two_ends
from tests.support.labtools import Capture, MakePair, StartCapture, StartTap


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.root)
    left_out = [item for item in items if _is_for_the_other_engine(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_for_the_other_engine(item: pytest.Item) -> bool:
    """Return True for half of the tests marked `either_engine`, which each engine shares in.

    Those that CI leaves out are for both.
    """
    if item.get_closest_marker("either_engine") is None or item.get_closest_marker("vm_full"):
        return False
    callspec = getattr(item, "callspec", None)
    engines = [] if callspec is None else [p for p in callspec.params.values() if p in ENGINES]
    if not engines:
        return False
    (engine,) = engines
    name = item.nodeid.replace(engine, "")
    return bool(engine != ENGINES[zlib.crc32(name.encode()) % len(ENGINES)])


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("lab tests need root for network namespaces: run ./scripts/test")


@pytest.fixture(autouse=True)
def _trial(request: pytest.FixtureRequest, record_property: RecordProperty) -> None:
    record_marked(request.node, record_property)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """This machine's charon with the plugin."""
    return build_plugin(tmp_path_factory.mktemp("ike"))


@pytest.fixture
def ends(installed: Installation) -> Iterator[list[End]]:
    """Two hosts whose charons negotiate, not started."""
    with two_ends(installed) as ends:
        yield ends


@pytest.fixture
def up(ends: list[End]) -> list[End]:
    """Both of `ends`, started, with a child."""
    start(*ends)
    ends[0].charon.initiate()
    for end in ends:
        await_child(end)
    return ends


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


# A comparison takes both engines; the python engine's device has one queue, which it takes at once.
_NATIVE = ["test_engines_agree.py", "test_tun_races.py"]
collect_ignore = [] if "native" in ENGINES else _NATIVE


@pytest.fixture(params=ENGINES)
def make_pair(
    request: pytest.FixtureRequest, tmp_path: Path, stack: contextlib.ExitStack
) -> MakePair:
    """Build a pair of gateways from PairPlan fields, not started, for each installed engine."""

    return partial(_make_pair, tmp_path, stack, request.param)


@pytest.fixture
def make_pair_of_one_engine(tmp_path: Path, stack: contextlib.ExitStack) -> MakePair:
    """Build a pair like `make_pair`, for tests of what no engine takes part in."""
    return partial(_make_pair, tmp_path, stack, ENGINES[0])


def _make_pair(
    folder: Path, stack: contextlib.ExitStack, engine: str, **fields: object
) -> GatewayPair:
    fields["settings"] = {"engine": engine, **fields.get("settings", {})}  # type: ignore[dict-item]
    return stack.enter_context(gateway_pair(folder, PairPlan(**fields)))  # type: ignore[arg-type]


@pytest.fixture
def pair(make_pair: MakePair) -> GatewayPair:
    """Two running gateways: tunnel mode, ESP in UDP."""
    pair = make_pair()
    pair.start()
    return pair


@pytest.fixture
def tap(stack: contextlib.ExitStack) -> StartTap:
    """Tap the wire of a namespace for cleartext."""

    def start(namespace: Namespace, plaintext: bytes = b"") -> Tap:
        return stack.enter_context(contextlib.closing(Tap(namespace, "wan", 4500, plaintext)))

    return start


@pytest.fixture
def capture(tmp_path: Path, stack: contextlib.ExitStack) -> StartCapture:
    """Capture the wire of a namespace into a file."""
    names = iter(range(100))

    def start(namespace: Namespace, device: str = "wan") -> Capture:
        capture = Capture(namespace, tmp_path / f"capture-{next(names)}.pcap", device)
        stack.callback(capture.stop)
        return capture

    return start
