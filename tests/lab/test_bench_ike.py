"""The figures of the benchmark for two gateways with charon, and for strongSwan's own ESP."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.bench.charon import EspGwIke, strongswan
from lab.bench.ike import initiate
from lab.bench.measures import TESTS
from lab.bench.model import Memory
from lab.bench.ping import answers
from lab.bench.plan import QUICK
from tests.support.charon import PLUGIN, build_plugin
from tests.support.engines import ENGINES


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("ike")).plugins / PLUGIN


def test_charon_brings_the_tunnel_again_and_again(plugin: Path, tmp_path: Path) -> None:
    with EspGwIke(ENGINES[-1], plugin)(tmp_path) as link:
        assert len(link.pids) == 4
        (sample,) = initiate(link, QUICK, Memory())
        assert sample.value > 0
        assert answers(link)


@pytest.mark.vm_full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("system", ["native-ike", "strongswan"])
def test_rekeys_and_children_give_figures(plugin: Path, tmp_path: Path, system: str) -> None:
    opener = strongswan if system == "strongswan" else EspGwIke(ENGINES[-1], plugin)
    with opener(tmp_path) as link:
        found = {
            sample.metric: sample.value
            for test in ("rekey", "children")
            for sample in TESTS[test].run(link, QUICK, Memory())
        }
    names = {"gap", "gap_without", "missing", "missing_without", "first", "last", "charon"}
    assert found.keys() == names | ({"lost", "gateway"} if system == "native-ike" else set())
    assert all(found[name] > 0 for name in ("gap", "gap_without", "first", "last"))
    assert found.get("lost", 0) == 0
