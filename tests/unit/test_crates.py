"""No ordinary build of the crates enables the feature `null-cipher`."""

from __future__ import annotations

import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest

CRATES = Path(__file__).parents[2] / "crates"
NULL_CIPHER = "null-cipher"


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


MANIFESTS = {path.parent.name: read(path) for path in sorted(CRATES.glob("*/Cargo.toml"))}


def switched_on(crate: str, feature: str) -> set[tuple[str, str]]:
    """Every feature of our crates that a crate's feature enables, itself included."""
    found: set[tuple[str, str]] = set()
    waiting = {(crate, feature)}
    while waiting:
        crate, feature = waiting.pop()
        found.add((crate, feature))
        for name in MANIFESTS[crate].get("features", {}).get(feature, ()):
            owner, _, of_owner = name.replace("?", "").rpartition("/")
            if not owner or owner in MANIFESTS:
                waiting |= {(owner or crate, of_owner)} - found
    return found


def test_the_feature_exists_and_reaches_the_core() -> None:
    assert ("esp-core", NULL_CIPHER) in switched_on("esp-py", NULL_CIPHER)


@pytest.mark.parametrize("crate", MANIFESTS)
def test_no_crate_leaves_the_cipher_out_by_default(crate: str) -> None:
    assert NULL_CIPHER not in {feature for _, feature in switched_on(crate, "default")}


@pytest.mark.parametrize("crate", MANIFESTS)
def test_no_crate_asks_another_to_leave_the_cipher_out(crate: str) -> None:
    tables = [MANIFESTS[crate], *MANIFESTS[crate].get("target", {}).values()]
    for table, kind in product(tables, ("dependencies", "dev-dependencies", "build-dependencies")):
        for name, wanted in table.get(kind, {}).items():
            features = wanted.get("features", ()) if isinstance(wanted, dict) else ()
            on = {(name, feature) for feature in features}
            assert (name, NULL_CIPHER) not in on, kind


def test_pip_does_not_build_without_the_cipher() -> None:
    maturin = read(CRATES / "esp-py" / "pyproject.toml")["tool"]["maturin"]
    assert NULL_CIPHER not in {name.rpartition("/")[2] for name in maturin["features"]}
    assert maturin.keys() <= {"features"}
