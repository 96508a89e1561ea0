"""charon of the distribution's packages, with esp_gw's plugin, isolated in a namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import Namespace, end
from lab.waiting import holds_within
from tests.support.labtools import until

ROOT = Path(__file__).parents[2]
PLUGINS = Path("/usr/lib/ipsec/plugins")
PLUGIN = "libstrongswan-kernel-esp-gw.so"
BASE = "random nonce openssl sha1 sha2 hmac kdf pem pkcs1 pkcs8 pubkey x509 constraints"
LOADED = f"{BASE} kernel-esp-gw kernel-netlink vici"
IKE = "aes256gcm16-prfsha256-x25519"
ESP = "aes256gcm16-x25519-esn"
START = 30.0

Section = Mapping[str, Any]


def write_section(section: Section, indent: str = "") -> str:
    """Return settings in strongSwan's syntax; a mapping is a section."""
    lines = []
    for name, value in section.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name} {{", write_section(value, indent + "  "), f"{indent}}}"]
        else:
            lines.append(f"{indent}{name} = {value}")
    return "\n".join(lines)


def installed_version() -> str:
    """Return the version of the charon that is installed here."""
    command = ["dpkg-query", "--show", "--showformat", "${Version}", "libstrongswan"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return found.partition("-")[0]


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
    return build_plugin(folder, root=root, version="6.0.1")


def with_ml(installed: Installation) -> Installation:
    """Build strongSwan's plugin ml for Debian 13's charon, beside the other plugins."""
    command = [str(ROOT / "scripts/build-ike-ml"), "6.0.1", str(installed.plugins)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return replace(installed, load=f"{LOADED} ml")


class Charon:
    """One charon, with a mount namespace of its own: /run, the plugins and its configuration."""

    def __init__(
        self, namespace: Namespace, folder: Path, installed: Installation, control_socket: Path
    ) -> None:
        self.namespace = namespace
        self.folder = folder
        self.log = folder / "charon.log"
        self.settings: dict[str, Any] = {}
        self.preload = ""
        """Assignments to the environment of charon alone: the shell's leaks are nobody's."""
        self._installed = installed
        self._control_socket = control_socket
        self._vici = f"unix://{folder}/charon.vici"
        self._process: subprocess.Popen[str] | None = None
        for name in ("conf.d", "x509", "x509ca", "private", "ecdsa"):
            (folder / "swanctl" / name).mkdir(parents=True, exist_ok=True)

    def configure(
        self, connections: Section, secrets: Section, pools: Section | None = None
    ) -> None:
        """Write swanctl.conf."""
        sections = {"connections": connections, "secrets": secrets, "pools": pools or {}}
        written = write_section(sections)
        (self.folder / "swanctl/swanctl.conf").write_text(written + "\n")

    def start(self) -> None:
        """Start charon and load the configuration."""
        plugin = {"socket": self._control_socket}
        charon = {
            "load": self._installed.load,
            "port": 500,
            "install_routes": "no",
            "retransmit_timeout": 0.5,
            "retransmit_tries": 3,
            "plugins": {"vici": {"socket": self._vici}, "kernel-esp-gw": plugin},
            # The plugin's own at the highest level, which shows keys in other parts of charon.
            "filelog": {"f": {"path": self.log, "flush_line": "yes", "default": 1, "knl": 4}},
            "syslog": {"daemon": {"default": -1}},
            **self.settings,
        }
        conf = self.folder / "strongswan.conf"
        swanctl = {"load": "random openssl pem pkcs1 pkcs8 pubkey x509"}
        conf.write_text(write_section({"charon-systemd": charon, "swanctl": swanctl}) + "\n")
        root = str(self._installed.root).rstrip("/")
        # That root has no other program than charon.
        launch = f'chroot "{root}"' if root else f"env {self.preload}"
        shared = [f'mount --rbind {name} "{root}{name}" && ' for name in ("/dev", "/proc", "/tmp")]
        script = (
            f'mount -t tmpfs tmpfs "{root}/run" && '
            f'mount --bind "{self._installed.plugins}" "{root}{PLUGINS}" && '
            f"{''.join(shared) if root else ''}"
            f"exec {launch} /usr/sbin/charon-systemd"
        )
        with (self.folder / "charon.out").open("a") as out:
            self._process = self.namespace.start(
                *("unshare", "--mount", "sh", "-c", script),
                env={"STRONGSWAN_CONF": str(conf)},
                stdout=out.fileno(),
                stderr=out.fileno(),
            )
        assert holds_within(START, self._is_ready), self.read_output()
        self.load()

    def _is_ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.read_output()
        return self.swanctl("--stats", check=False).returncode == 0

    def read_output(self) -> str:
        texts = (self.folder / "charon.out", self.log)
        return "\n".join(path.read_text() for path in texts if path.exists())[-4000:]

    def load(self) -> None:
        """Load credentials and connections, as the unit of charon does after its start."""
        self.swanctl("--load-all", "--noprompt")

    def swanctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run swanctl on this charon. Raises AssertionError if it fails and `check` is set."""
        environment = {
            **os.environ,
            "STRONGSWAN_CONF": str(self.folder / "strongswan.conf"),
            "SWANCTL_DIR": str(self.folder / "swanctl"),
        }
        result = subprocess.run(
            ["swanctl", *arguments, "--uri", self._vici],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def initiate(self, child: str = "net") -> None:
        self.swanctl("--initiate", "--child", child, "--timeout", "20")

    def has_logged(self, words: str) -> bool:
        return words in self.log.read_text()

    def await_log(self, words: str, seconds: float = 20.0) -> None:
        until(lambda: self.has_logged(words), f"{words!r} in the log of charon", seconds)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """End charon by SIGTERM; return its exit status."""
        assert self._process is not None
        status = end(self._process, 30)
        self._process = None
        return status

    def kill(self) -> None:
        """End charon by SIGKILL."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.kill()
