"""charon of the distribution with the plugin kernel-esp-gw, apart from the host's own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import COMMAND_TIMEOUT, Namespace, end, run_command
from esp_gw.errors import LabError

PLUGINS = Path("/usr/lib/ipsec/plugins")
PLUGIN = "libstrongswan-kernel-esp-gw.so"
CHARON, SWANCTL = Path("/usr/sbin/charon-systemd"), Path("/usr/sbin/swanctl")
BASE = "random nonce openssl sha1 sha2 hmac kdf pem pkcs1 pkcs8 pubkey x509 constraints"
LOADED = f"{BASE} kernel-esp-gw kernel-netlink vici"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
_PAUSE = 0.05

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


def copy_plugins(folder: Path, plugin: Path | None) -> Path:
    """Copy charon's plugins into a folder, and the gateway's own unless it is among them.

    Raises LabError if it is at neither place, or charon isn't installed.
    """
    missing = [path.name for path in (CHARON, SWANCTL) if not path.exists()]
    if missing:
        raise LabError(
            f"not installed: {', '.join(missing)}",
            hint="on Debian: 'apt-get install charon-systemd strongswan-swanctl "
            "libstrongswan-standard-plugins'",
        )
    source = plugin or PLUGINS / PLUGIN
    if not source.exists():
        raise LabError(
            f"charon's plugin is not there: {source}",
            hint="./scripts/demo --ike builds it, ./scripts/install-ike installs it",
        )
    copied = folder / "plugins"
    try:
        shutil.copytree(PLUGINS, copied)
        shutil.copyfile(source, copied / PLUGIN)
    except OSError as error:
        raise LabError(error.strerror or "can't be copied", where=str(error.filename)) from None
    return copied


class Charon:
    """One charon, with a mount namespace of its own: /run, the plugins, its configuration.

    `folder` has what it writes, `swanctl_dir` stands for /etc/swanctl. `settings` are added to
    those of strongswan.conf.
    """

    def __init__(
        self,
        namespace: Namespace,
        folder: Path,
        plugins: Path,
        control_socket: Path,
        swanctl_dir: Path | None = None,
    ) -> None:
        self.namespace = namespace
        self.folder = folder
        self.swanctl_dir = swanctl_dir or folder / "swanctl"
        self.plugins = plugins
        self.log = folder / "charon.log"
        self.settings: dict[str, Any] = {}
        self._control_socket = control_socket
        self._vici = f"unix://{folder}/charon.vici"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start charon and load its configuration. Raises LabError."""
        conf = self.folder / "strongswan.conf"
        swanctl = {"load": "random openssl pem pkcs1 pkcs8 pubkey x509"}
        sections = {"charon-systemd": self._settings(), "swanctl": swanctl}
        conf.write_text(write_section(sections) + "\n")
        script = " && ".join([*self._mounts(), f"exec {self._program()}"])
        with (self.folder / "charon.out").open("a") as out:
            self._process = self.namespace.start(
                *("unshare", "--mount", "sh", "-c", script),
                env={"STRONGSWAN_CONF": str(conf)},
                stdout=out.fileno(),
                stderr=out.fileno(),
            )
        self._await_start()
        self.load()

    def load(self) -> None:
        """Load credentials and connections, as the unit of charon does after its start."""
        self.swanctl("--load-all", "--noprompt")

    def swanctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run swanctl on this charon. Raises LabError if it fails and `check` is set."""
        environment = {
            **os.environ,
            "STRONGSWAN_CONF": str(self.folder / "strongswan.conf"),
            "SWANCTL_DIR": str(self.swanctl_dir),
        }
        command = [str(self._own_copy(SWANCTL)), *arguments, "--uri", self._vici]
        where = f"swanctl {arguments[0]} in {self.namespace.name}"
        return run_command(command, COMMAND_TIMEOUT, check, where=where, env=environment)

    @property
    def version(self) -> str:
        """The version of charon. Raises LabError if it doesn't answer."""
        told = self.swanctl("--version", "--daemon").stdout.split()
        return next((word for word in told if word[:1].isdigit()), "of an unknown version")

    @property
    def is_running(self) -> bool:
        """True if charon was started, and neither stopped nor killed."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """charon's process id. Raises LabError if it doesn't run."""
        if self._process is None:
            raise LabError("charon does not run", where=self.namespace.name)
        return self._process.pid

    def stop(self) -> int:
        """End charon by SIGTERM; return its exit status. Raises LabError if it doesn't run."""
        if self._process is None:
            raise LabError("charon does not run", where=self.namespace.name)
        status = end(self._process, STOP_TIMEOUT)
        self._process = None
        return status

    def kill(self) -> None:
        """End charon by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End charon, if it runs."""
        self.kill()

    def last_words(self) -> str:
        """Return the last line of what charon has said."""
        lines = self.read_output().splitlines()
        return lines[-1] if lines else "charon ended without a word"

    def read_output(self) -> str:
        """Return the end of what charon has said."""
        texts = (self.folder / "charon.out", self.log)
        return "\n".join(path.read_text() for path in texts if path.exists())[-4000:]

    def _settings(self) -> Section:
        return {
            "load": LOADED,
            "port": 500,
            "install_routes": "no",
            "plugins": {
                "vici": {"socket": self._vici},
                "kernel-esp-gw": {"socket": self._control_socket},
            },
            "filelog": {"f": {"path": self.log, "flush_line": "yes", "default": 1}},
            "syslog": {"daemon": {"default": -1}},
            **self.settings,
        }

    def _mounts(self) -> Sequence[str]:
        """Return the commands that give charon files of its own."""
        return (
            "mount -t tmpfs tmpfs /run",
            f"mount --bind {shlex.quote(str(self.plugins))} {PLUGINS}",
        )

    def _program(self) -> str:
        return shlex.quote(str(self._own_copy(CHARON)))

    def _own_copy(self, program: Path) -> Path:
        """Return a copy that no AppArmor profile of the distribution knows: they go by the path.

        The profiles allow neither these sockets nor this configuration.
        """
        copy = self.folder / f"own-{program.name}"
        if not copy.exists():
            shutil.copy2(program, copy)
        return copy

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self.swanctl("--stats", check=False).returncode:
            if self._process is None or self._process.poll() is not None:
                raise LabError(self.last_words(), where=self.namespace.name)
            if time.monotonic() > deadline:
                raise LabError("charon did not become ready", where=self.namespace.name)
            time.sleep(_PAUSE)
