"""charon of the distribution's packages, with esp_gw's plugin, isolated in a namespace."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from esp_gw.demo import charon
from esp_gw.demo.charon import CHARON, LOADED, PLUGINS, Section, write_section
from esp_gw.demo.netns import Namespace
from tests.support.labtools import until

ROOT = Path(__file__).parents[2]
BASE, PLUGIN = charon.BASE, charon.PLUGIN
IKE = "aes256gcm16-prfsha256-x25519"
ESP = "aes256gcm16-x25519-esn"
DEBIAN_13 = "6.0.1"
"""The version of Debian 13's charon."""


def installed_version() -> str:
    """Return the version of the charon that is installed here."""
    command = ["dpkg-query", "--show", "--showformat", "${Version}", "libstrongswan"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return found.partition("-")[0]


def here() -> str:
    """The peer of a trial: the installed charon, with a gateway."""
    return _with_gateway(installed_version())


def of_debian_13() -> str:
    """The peer of a trial: Debian 13's charon, with a gateway."""
    return _with_gateway(DEBIAN_13)


def of_libipsec() -> str:
    """The peer of a trial: the installed charon, with strongSwan's own ESP in user space."""
    return f"strongSwan {installed_version()} with kernel-libipsec"


def _with_gateway(version: str) -> str:
    return f"strongSwan {version} with esp_gw as its kernel"


@dataclass(frozen=True)
class Installation:
    """A charon with the plugin: the root directory that has it, its plugins, those to load."""

    plugins: Path
    root: Path = Path("/")
    load: str = LOADED


def build_plugin(
    folder: Path, *options: str, root: Path = Path("/"), version: str = ""
) -> Installation:
    """Build the plugin for a version of charon, by default the installed one."""
    plugins = folder / "plugins"
    shutil.copytree(root / str(PLUGINS).lstrip("/"), plugins)
    script = str(ROOT / "scripts/build-ike-plugin")
    command = [script, *options, version or installed_version(), str(plugins)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return Installation(plugins, root)


def take_built_plugin(folder: Path) -> Installation:
    """Copy the installed charon's plugins, and the gateway's that `have_built_plugin` has built."""
    plugins = charon.copy_plugins(folder, _built_plugin())
    return Installation(plugins)


def have_built_plugin() -> None:
    """Build the plugin in the checkout, for a machine that has no compiler's time to spare."""
    command = [str(ROOT / "scripts/build-ike-plugin")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr


def _built_plugin() -> Path:
    return ROOT / "strongswan/out" / installed_version() / PLUGIN


def debian_13(folder: Path) -> Installation:
    """Fetch Debian 13's charon with the libraries that it needs, and build the plugin for it."""
    root = folder / "root"
    packages = "charon-systemd,libstrongswan-standard-plugins,libjansson4"
    mirror = "http://deb.debian.org"
    sources = (f"{mirror}/debian trixie main", f"{mirror}/debian-security trixie-security main")
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={packages}", "trixie"]
    command += [str(root), *(f"deb {source}" for source in sources)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr
    for name in ("lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "run", "tmp", "var"):
        (root / name).mkdir(exist_ok=True)
    (root / "var/run").unlink(missing_ok=True)
    (root / "var/run").symlink_to("../run")
    return build_plugin(folder, root=root, version=DEBIAN_13)


def with_ml(installed: Installation) -> Installation:
    """Build strongSwan's plugin ml for Debian 13's charon, beside the other plugins."""
    command = [str(ROOT / "scripts/build-ike-ml"), DEBIAN_13, str(installed.plugins)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return replace(installed, load=f"{LOADED} ml")


class Charon(charon.Charon):
    """charon of an installation, with swanctl.conf of the test's."""

    def __init__(
        self, namespace: Namespace, folder: Path, installed: Installation, control_socket: Path
    ) -> None:
        super().__init__(namespace, folder, installed.plugins, control_socket)
        self.preload = ""
        """Assignments to the environment of charon alone: the shell's leaks are nobody's."""
        self._load = installed.load
        self._root = str(installed.root).rstrip("/")
        for name in ("conf.d", "x509", "x509ca", "private", "ecdsa"):
            (folder / "swanctl" / name).mkdir(parents=True, exist_ok=True)

    def configure(
        self, connections: Section, secrets: Section, pools: Section | None = None
    ) -> None:
        """Write swanctl.conf."""
        sections = {"connections": connections, "secrets": secrets, "pools": pools or {}}
        written = write_section(sections)
        (self.folder / "swanctl/swanctl.conf").write_text(written + "\n")

    def initiate(self, child: str = "net") -> None:
        self.swanctl("--initiate", "--child", child, "--timeout", "20")

    def has_logged(self, words: str) -> bool:
        return words in self.log.read_text()

    def await_log(self, words: str, seconds: float = 20.0) -> None:
        until(lambda: self.has_logged(words), f"{words!r} in the log of charon", seconds)

    def _settings(self) -> Section:
        # The plugin's own at the highest level, which shows keys in other parts of charon.
        log = {"path": self.log, "flush_line": "yes", "default": 1, "knl": 4}
        return {
            **super()._settings(),
            "load": self._load,
            "retransmit_timeout": 0.5,
            "retransmit_tries": 3,
            "filelog": {"f": log},
            **self.settings,
        }

    def _mounts(self) -> Sequence[str]:
        if not self._root:
            return super()._mounts()
        root = self._root
        return (
            f'mount -t tmpfs tmpfs "{root}/run"',
            f'mount --bind "{self.plugins}" "{root}{PLUGINS}"',
            *(f'mount --rbind {name} "{root}{name}"' for name in ("/dev", "/proc", "/tmp")),
        )

    def _program(self) -> str:
        # That root has no other program than charon.
        launch = f'chroot "{self._root}"' if self._root else f"env {self.preload}"
        return f"{launch} {CHARON}"
