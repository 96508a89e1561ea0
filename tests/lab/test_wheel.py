"""The wheel as a user installs it: the package alone, and a demo that needs nothing beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE-APACHE", "LICENSE-MIT", "esp_gw", "lab", "tests")


def pip(python: str | Path, *arguments: str) -> None:
    options = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", *arguments[:1], *options, *arguments[1:]], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it from a copy: setuptools takes what an earlier build has left in a checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_licences_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"esp_gw", info}
    shipped = {name for name in names if name.startswith("esp_gw/")}
    assert {
        str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "esp_gw").rglob("*.py")
    } <= shipped
    assert "esp_gw/py.typed" in shipped
    licences = {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE-APACHE", "LICENSE-MIT"}


@pytest.mark.timeout(300)
def test_the_demo_runs_from_a_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip(tmp_path / "venv" / "bin" / "python", "install", str(wheel))
    command = [tmp_path / "venv" / "bin" / "esp-gw", "demo", "--seconds", "1", "--json"]
    result = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["engine"] == "python"
