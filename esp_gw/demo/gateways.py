"""Real daemons in a lab: start, query, stop and kill them, each in its namespace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.control.client import call
from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import LabError
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger

START_TIMEOUT = 180.0
CALL_TIMEOUT = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources used by a process: CPU time in seconds, resident memory in bytes."""

    cpu_s: float
    rss: int


def usage(pid: int) -> Usage:
    """Return the resources used by a process so far. Raises LabError if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise LabError(f"the process {pid} has ended") from None
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / _TICKS, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


class LabGateway:
    """One esp-gw daemon; `folder` holds its state and control socket, `env` extends ours.

    `command` is the daemon's command, `options` follow its configuration.
    """

    def __init__(self, namespace: Namespace, config: Path, folder: Path) -> None:
        self.namespace = namespace
        self.config = config
        self.folder = folder
        self.log = folder / "log"
        self.socket = folder / "control.sock"
        self.env: dict[str, str] = {}
        self.command: tuple[str, ...] = ("run",)
        self.options: tuple[str, ...] = ()
        self.process: subprocess.Popen[str] | None = None

    @property
    def settings(self) -> dict[str, object]:
        """Fields of the section `gateway` that keep this daemon's files inside `folder`."""
        return {"state_dir": str(self.folder), "control_socket": str(self.socket)}

    @property
    def is_running(self) -> bool:
        """True if the daemon was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The daemon's process id. Raises LabError if it was never started."""
        return self._running().pid

    def start(self) -> None:
        """Start the daemon and wait until it is ready. Raises LabError."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the daemon without waiting for it."""
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = self.folder / "notify.sock"
        path.unlink(missing_ok=True)
        self._notify.bind(str(path))
        arguments = (*self.command, "--config", str(self.config), *self.options)
        self.process = self.spawn(arguments, {"NOTIFY_SOCKET": str(path)})

    def spawn(self, arguments: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start the program with this environment added to `self.env`, and append to its log."""
        with self.log.open("a") as log:
            return self.namespace.start(
                *_PROGRAM, *arguments, env={**self.env, **env}, stderr=log.fileno()
            )

    def wait_ready(self) -> None:
        """Wait until the daemon reports READY=1 to its service manager, which is us.

        Raises LabError with the last line of the daemon's log if it ends instead.
        """
        process, notify = self._running(), self._notify
        notify.settimeout(0.1)
        deadline = time.monotonic() + START_TIMEOUT
        with notify:
            while time.monotonic() < deadline:
                try:
                    if "READY=1" in notify.recv(4096).decode().splitlines():
                        return
                except TimeoutError:
                    if process.poll() is not None:
                        raise LabError(self.last_words(), where=self.namespace.name) from None
        raise LabError("the gateway did not become ready", where=self.namespace.name)

    def last_words(self) -> str:
        """Return the last line of the daemon's log, without the prefix of an error."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        words = lines[-1] if lines else "the gateway ended without a log line"
        return words.removeprefix("esp-gw: error: ")

    def stop(self) -> int:
        """Stop the daemon like systemd; return its exit status."""
        return end(self._running())

    def kill(self) -> None:
        """Kill the daemon with SIGKILL."""
        process = self._running()
        process.kill()
        process.wait()

    def hangup(self) -> None:
        """Send SIGHUP, which reloads the configuration."""
        self._running().send_signal(signal.SIGHUP)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the CLI against this daemon."""
        return self.namespace.run(*_PROGRAM, "--socket", str(self.socket), *arguments, check=check)

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run a CLI command with `--json` and return the parsed output.

        Raises LabError if it prints none; `status` fails where there is a warning.
        """
        done = self.cli(*arguments, "--json", check=False)
        if not done.stdout:
            raise LabError(done.stderr.strip(), where=" ".join(arguments))
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a control method and return the reply, which `ask` would get by way of a process.

        Raises ControlError for an error reply, EspGwError if there is no reply.
        """
        return call(self.socket, method, parameters, CALL_TIMEOUT)

    def create_ledger(self) -> None:
        """Create an empty ledger: no key of this gateway was used before. Raises LedgerError."""
        Ledger.create(self.folder / LEDGER_NAME, machine_identity())

    def usage(self) -> Usage:
        """Return the resources used by the daemon so far."""
        return usage(self.pid)

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise LabError("the gateway was never started", where=self.namespace.name)
        return self.process


# The daemon of this installation, regardless of PATH.
_PROGRAM = (sys.executable, "-m", "esp_gw.cli.main")
