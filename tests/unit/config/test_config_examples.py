from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from esp_gw.config.keyfile import format_keymat, generate
from esp_gw.config.load import load_config
from esp_gw.desired import Desired
from esp_gw.model import DEFAULT_SUITE, SUITES, Action, Direction
from tests.support.builders import mirrored

EXAMPLES = Path(__file__).parents[3] / "configs"


def provided(tmp_path: Path, *names: str) -> list[Desired]:
    """Load examples from a copy; the two ends of a tunnel get the same keys."""
    shutil.copytree(EXAMPLES, tmp_path / "configs")
    (tmp_path / "configs" / "keys").mkdir()
    made: dict[str, str] = {}
    loaded = []
    for name in names:
        path = tmp_path / "configs" / name
        text = path.read_text()
        suites = re.findall(r"suite: (\S+)", text)
        for block in re.split(r"\n  (?=[a-z0-9-]+:\n)", text):
            suite = SUITES[(re.findall(r"suite: (\S+)", block) or [DEFAULT_SUITE.name])[0]]
            count = int((re.findall(r"sas: (\d+)", block) or ["1"])[0])
            for spi, key in re.findall(r"spi: (\w+), key: \{file: (keys/[^}]+)\}", block):
                target = path.parent / key
                lines = [f"{format_keymat(generate(suite))}\n" for _ in range(count)]
                target.write_text(made.setdefault(spi, "".join(lines)))
                target.chmod(0o600)
        assert len(suites) <= len(re.findall("outbound:", text))
        loaded.append(load_config(path))
    return loaded


STEMS = ["pi", "transport", "raw-esp", "ipv6", "several-sas"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_two_ends_of_an_example_mirror_each_other(tmp_path: Path, stem: str) -> None:
    a, b = provided(tmp_path, f"{stem}-a.yaml", f"{stem}-b.yaml")
    for one, other in ((a, b), (b, a)):
        sent = [sa for sa in one.sas if sa.direction is Direction.OUTBOUND]
        taken = [sa for sa in other.sas if sa.direction is Direction.INBOUND]
        for out, in_ in zip(sent, taken, strict=True):
            assert set(mirrored(out.selectors)) == set(in_.selectors)
            assert (out.spi, out.keymat, out.suite) == (in_.spi, in_.keymat, in_.suite)
            assert (out.mode, out.encapsulation) == (in_.mode, in_.encapsulation)
            assert (out.esn, out.replay_window) == (in_.esn, in_.replay_window)
            assert (out.local, out.remote) == (in_.remote, in_.local)
        assert not one.warnings


def test_the_example_with_several_tunnels(tmp_path: Path) -> None:
    (hub,) = provided(tmp_path, "several-tunnels.yaml")
    assert len(hub.tunnels) == 3
    assert {policy.action for policy in hub.policies} == set(Action)


def test_every_example_is_tested() -> None:
    pairs = {f"{stem}-{end}.yaml" for stem in STEMS for end in "ab"}
    assert {path.name for path in EXAMPLES.iterdir()} == pairs | {"several-tunnels.yaml"}
