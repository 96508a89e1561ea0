"""The root of machines of another architecture: caching, unpacking, requirements."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from esp_gw.errors import LabError
from lab.vm import root
from lab.vm.__main__ import CHECKOUT, here
from lab.vm.cache import Recipe, cached
from lab.vm.image import ARCHITECTURES, Image
from lab.vm.qemu import Setup, command_line

ARM = ARCHITECTURES["aarch64"]


class TestCache:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return self.get(tmp_path, [])

    @staticmethod
    def get(cache: Path, messages: list[str], wanted: str = "1") -> Path:
        def make(folder: Path, work: Path) -> dict[str, str]:
            (folder / "sub").mkdir()
            (folder / "sub/file").write_text("whole")
            (folder / "away").symlink_to("/no/such/file")
            (work / "left over").touch()
            return {"contents": wanted}

        recipe = Recipe("thing", "a thing", make, wanted={"contents": wanted})
        return cached(cache, recipe, messages.append)[0]

    def test_makes_a_folder_once(self, folder: Path) -> None:
        messages: list[str] = []
        assert self.get(folder.parent, messages) == folder
        assert messages == []
        assert {path.name for path in folder.parent.iterdir()} == {"thing.lock", "thing"}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "sub/file").write_text("hole"),
            lambda folder: (folder / "sub/file").unlink(),
            lambda folder: ((folder / "away").unlink(), (folder / "away").symlink_to("/other")),
            lambda folder: (folder / "away").unlink(),
        ],
    )
    def test_rebuilds_a_damaged_one(self, folder: Path, damage: Callable[[Path], object]) -> None:
        damage(folder)
        messages: list[str] = []
        self.get(folder.parent, messages)
        assert "damaged" in messages[0]
        assert (folder / "sub/file").read_text() == "whole"
        assert str((folder / "away").readlink()) == "/no/such/file"

    def test_rebuilds_an_outdated_one(self, folder: Path) -> None:
        messages: list[str] = []
        self.get(folder.parent, messages, wanted="2")
        assert "outdated" in messages[0]
        assert self.get(folder.parent, last := [], wanted="2") == folder
        assert last == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A Debian package from before the /usr merge."""
    tree = tmp_path / "tree"
    for path in ("DEBIAN", "bin", "lib/arm", "usr/bin", "usr/share/base-passwd", "tmp"):
        (tree / path).mkdir(parents=True)
    control = "Package: p\nVersion: 1\nArchitecture: arm64\nMaintainer: m\nDescription: d\n"
    (tree / "DEBIAN/control").write_text(control)
    for path in ("bin/su", "lib/arm/lib.so", "usr/bin/python3.99"):
        (tree / path).write_text("program")
        (tree / path).chmod(0o4755)
    (tree / "usr/bin/python3").symlink_to("python3.99")
    for name in ("passwd", "group"):
        (tree / f"usr/share/base-passwd/{name}.master").write_text("root:*:0:\n")
    subprocess.run(["dpkg-deb", "-b", "-Zgzip", tree, tmp_path / "p.deb"], check=True)
    return tmp_path / "p.deb"


def test_packages_become_a_root_with_merged_usr_and_nothing_setuid(
    package: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "root"
    root._unpack_packages([package], folder)
    for path in ("usr/bin/su", "usr/lib/arm/lib.so"):
        assert (folder / path).read_text() == "program"
        assert (folder / path).stat().st_mode & 0o7777 == 0o755
    assert (folder / "bin/su").samefile(folder / "usr/bin/su")
    assert "sshd:" in (folder / "etc/passwd").read_text()
    assert root._python_version(folder) == "3.99"


def test_a_broken_package_is_named(package: Path, tmp_path: Path) -> None:
    package.write_bytes(package.read_bytes()[:300])
    with pytest.raises(LabError, match=r"p\.deb: can't be unpacked"):
        root._unpack_packages([package], tmp_path / "root")


def test_a_root_has_the_requirements_of_the_package_and_its_tests_but_no_linters() -> None:
    names = {word.split(">")[0] for word in root._requirements(CHECKOUT / "pyproject.toml")}
    assert {"cryptography", "pyroute2", "pytest", "hypothesis"} <= names
    assert not {"ruff", "mypy", "types-PyYAML"} & names


class TestNativeEngine:
    def wheel(self, folder: Path, name: str, content: str) -> None:
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("esp_gw_core/__init__.py", content)

    def test_is_the_current_wheel_of_the_architecture(self, tmp_path: Path) -> None:
        dist = tmp_path / "dist"
        self.wheel(dist, "esp_gw_core-1-cp311-abi3-manylinux_2_28_x86_64.whl", "x86")
        assert root.native_engine(tmp_path, ARM, dist, print) is None
        for content in ("one", "two", "two"):
            self.wheel(dist, "esp_gw_core-1-cp311-abi3-manylinux_2_28_aarch64.whl", content)
            folder = root.native_engine(tmp_path, ARM, dist, print)
            assert folder is not None
            assert (folder / "esp_gw_core/__init__.py").read_text() == content

    def test_that_is_not_a_wheel_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "esp_gw_core-1-cp311-abi3-linux_aarch64.whl").write_text("not found")
        with pytest.raises(LabError, match=r"aarch64\.whl: not a wheel"):
            root.native_engine(tmp_path, ARM, tmp_path, print)


def test_a_machine_of_another_architecture_has_its_own_programs_and_the_checkout(
    tmp_path: Path,
) -> None:
    setup = Setup(ARM, Image(tmp_path, "6.1"), Path("/usr/bin/python3"), checkout=CHECKOUT)
    line = command_line(setup, tmp_path, 3, 4)
    share = f"local,id=checkout,path={CHECKOUT},security_model=none,multidevs=remap,readonly=on"
    assert share in line
    assert line[line.index("-cpu") + 1] == "cortex-a76"
    # The checkout may hold the host's virtual environment, whose programs don't run inside.
    assert here(setup, ("true",), CHECKOUT).environment["PATH"].startswith("/usr/bin:/usr/local/")
