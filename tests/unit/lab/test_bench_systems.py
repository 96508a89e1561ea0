"""Which systems a run measures, and in which environment an earlier version of ours runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esp_gw.errors import LabError
from lab.bench.gateways import earlier_version
from lab.bench.plan import Options, make_plan


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of which both packages say where they are."""
    packages = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    for package in (tmp_path / "esp_gw", packages / "esp_gw_core"):
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
    return tmp_path


def test_an_earlier_version_runs_with_its_own_packages_wherever_it_is_started(
    checkout: Path,
) -> None:
    code = "import esp_gw, esp_gw_core; print(esp_gw.__file__, esp_gw_core.__file__)"
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **earlier_version(checkout)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(Path(path).is_relative_to(checkout) for path in output.split())
    assert len(output.split()) == 2


@pytest.mark.parametrize("missing", ["esp_gw", ".venv"])
def test_a_checkout_that_was_not_built_is_refused(checkout: Path, missing: str) -> None:
    (checkout / missing).rename(checkout / "elsewhere")
    with pytest.raises(LabError, match="no checkout with a native engine"):
        earlier_version(checkout)


def test_a_baseline_takes_its_turn_beside_the_native_engine(checkout: Path) -> None:
    def systems(options: Options) -> list[str]:
        return [subject.system for _, _, subject in make_plan(options).turns()]

    chosen = Options(rounds=1, sections=("systems",), tests=("rtt",), baseline=checkout)
    assert systems(chosen)[:4] == ["veth", "native", "native-ike", "baseline"]
    assert "baseline" not in systems(Options(rounds=1, sections=("systems",)))


def test_two_tunnels_are_compared_with_as_many_of_wireguard_go() -> None:
    plan = make_plan(Options(rounds=2, tests=("tcp_tunnels",)))
    turns = [(number, subject.system, subject.tests) for number, _, subject in plan.turns()]
    assert turns == [
        (number, system, ("tcp_tunnels",))
        for number in (0, 1)
        for system in ("native-2-tunnels", "wireguard-go-2-tunnels")
    ]


def test_one_sa_is_a_technique_and_the_default_is_what_init_writes() -> None:
    plan = make_plan(Options(rounds=1, tests=("tcp", "rtt_loaded")))
    sas = {subject.system: getattr(subject.open, "sas", None) for _, _, subject in plan.turns()}
    assert sas["native-1-sa"] == 1
    assert sas["native"] == sas["native-all"] == max(2, min(4, len(os.sched_getaffinity(0))))
