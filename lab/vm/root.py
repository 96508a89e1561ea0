"""A root filesystem for an architecture other than the host's.

Debian packages and Python wheels, fetched and unpacked once, verified at each use. None of its
programs run while it is made, so that needs no emulator. It serves as the root of a virtual machine
and for programs under qemu-user.
"""

from __future__ import annotations

import compileall
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esp_gw.errors import LabError
from lab.vm.cache import Recipe, cached
from lab.vm.debian import Apt, run_program
from lab.vm.image import Architecture

PACKAGES = (
    *("base-files", "base-passwd", "libc-bin", "bash", "dash", "coreutils", "findutils", "grep"),
    *("sed", "mawk", "tar", "hostname", "mount", "util-linux", "procps", "kmod", "python3"),
    *("iproute2", "iputils-ping", "iperf3", "tcpdump", "nftables", "ethtool", "openssl"),
    *("openssh-client", "openssh-server"),
    # Needed by numpy.
    "libstdc++6",
    # Satisfies dependencies on usrmerge: this root is created with a merged /usr.
    "usr-is-merged",
)
_HOST_ONLY = re.compile(r"(mypy|ruff|types-)")
"""Development tools that only inspect the source."""
_MERGED = ("bin", "sbin", "lib")
_FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "usr/local/bin/esp-gw": (
        "#!/usr/bin/python3\nimport sys\n\nfrom esp_gw.cli.main import main\n\nsys.exit(main())\n"
    ),
}
_SSHD_USER = "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"


@dataclass(frozen=True, slots=True)
class Root:
    """A root at `folder`; `version` is its Python's, such as "3.11"."""

    folder: Path
    version: str

    @property
    def site(self) -> str:
        """The folder of Python packages, relative to the root."""
        return _site(self.version)


def foreign_root(
    cache: Path, architecture: Architecture, project: Path, say: Callable[[str], None]
) -> Root:
    """Return the root in `cache`; fetch it if it is missing, damaged or outdated.

    It has the requirements that the pyproject.toml `project` names to run and test the package, not
    the package itself. Raises LabError if packages can't be fetched.
    """
    requirements = _requirements(project)

    def make(folder: Path, work: Path) -> dict[str, str]:
        _unpack_packages(Apt(work, architecture.debian).download_all(*PACKAGES), folder)
        version = _python_version(folder)
        _install_wheels(folder / _site(version), architecture, version, requirements)
        _compile(folder, version)
        return {"python": version, "contents": contents}

    contents = hashlib.sha256(repr((PACKAGES, requirements, _FILES)).encode()).hexdigest()
    what = f"Debian and Python packages for {architecture.name}"
    recipe = Recipe(
        f"{architecture.name}-root", what, make, ("python",), wanted={"contents": contents}
    )
    folder, facts = cached(cache, recipe, say)
    return Root(folder, facts["python"])


def native_engine(
    cache: Path, architecture: Architecture, wheels: Path, say: Callable[[str], None]
) -> Path | None:
    """Return a folder to import esp_gw_core from: the newest wheel in `wheels`, unpacked.

    Return None if there is no wheel for the architecture. Raises LabError for an invalid wheel.
    """
    found = sorted(
        wheels.glob(f"esp_gw_core-*{architecture.name}.whl"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        return None
    wheel = found[-1]

    def make(folder: Path, work: Path) -> dict[str, str]:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        except zipfile.BadZipFile:
            raise LabError("not a wheel", where=str(wheel)) from None
        return wanted

    wanted = {"wheel": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    recipe = Recipe(f"{architecture.name}-native", wheel.name, make, wanted=wanted)
    return cached(cache, recipe, say)[0]


def _requirements(project: Path) -> list[str]:
    """Return the requirements of the package and its tests, in pip's syntax."""
    described = tomllib.loads(project.read_text())["project"]
    wanted = [*described["dependencies"], *described["optional-dependencies"]["dev"]]
    return [requirement for requirement in wanted if not _HOST_ONLY.match(requirement)]


def _unpack_packages(packages: list[Path], folder: Path) -> None:
    for name in _MERGED:
        (folder / "usr" / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for package in packages:
        command = ["tar", "-x", "--keep-directory-symlink", "-C", str(folder)]
        # Nothing here may be setuid on the host.
        command += ["--no-same-owner", "--no-same-permissions"]
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as process:
            done = subprocess.run(
                command, stdin=process.stdout, capture_output=True, text=True, check=False
            )
        if done.returncode or process.returncode:
            raise LabError(f"can't be unpacked: {done.stderr.strip()[-200:]}", where=package.name)
    # Normally done by the packages' maintainer scripts.
    masters = folder / "usr/share/base-passwd"
    passwd = (masters / "passwd.master").read_text() + _SSHD_USER
    group = (masters / "group.master").read_text()
    for path, text in {"etc/passwd": passwd, "etc/group": group, **_FILES}.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "tmp").chmod(0o1777)
    (folder / "usr/local/bin/esp-gw").chmod(0o755)
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")


def _python_version(folder: Path) -> str:
    return (folder / "usr/bin/python3").readlink().name.removeprefix("python")


def _site(version: str) -> str:
    return f"usr/local/lib/python{version}/dist-packages"


def _install_wheels(
    site: Path, architecture: Architecture, version: str, requirements: list[str]
) -> None:
    run_program(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-compile", "--target", str(site), "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", version),
        *("--platform", f"manylinux_2_28_{architecture.name}"),
        *("--platform", f"manylinux2014_{architecture.name}"),
        *requirements,
        marks=("ERROR: ",),
        hint="check the network and PyPI",
    )


def _compile(folder: Path, version: str) -> None:
    # Otherwise the emulated processor would compile at every start. Needs the same version here.
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        for path in (f"usr/lib/python{version}", _site(version)):
            compileall.compile_dir(
                folder / path, quiet=2, stripdir=str(folder), prependdir="/", workers=1
            )
