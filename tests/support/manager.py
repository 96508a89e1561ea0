"""A service manager of one gateway: environment, notifications, and a file as the journal."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

from esp_gw.demo.gateways import LabGateway
from tests.support.labtools import until

_LEVELS = {"<3>": "error", "<4>": "warning", "<6>": "info"}
_UNDER_A_JOURNAL = """\
import os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Manager:
    """Starts a gateway as a service; `status` is its last status text, `states` all its states."""

    def __init__(self, gateway: LabGateway) -> None:
        self.gateway = gateway
        self.runtime = gateway.folder / "runtime"
        self.runtime.mkdir()
        self.journal = gateway.folder / "journal"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.runtime / "notify"))
        (self.runtime / "notify").chmod(0o666)
        self._notify.setblocking(False)
        self.status = ""
        self.statuses: list[str] = []
        self.states: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the service, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._notify.close()

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process that was started last."""
        assert self._process is not None
        return self._process

    def launch(
        self, *options: str, before: Sequence[str] = (), watchdog_usec: int = 200_000
    ) -> None:
        """Start the service by way of the command `before`; wait for nothing."""
        with self.journal.open("a") as journal:
            self._process = self.gateway.namespace.start(
                *(*before, sys.executable, "-c", _UNDER_A_JOURNAL),
                *(sys.executable, "-m", "esp_gw.cli.main", "run"),
                *(options or ("--config", str(self.gateway.config))),
                env={
                    "NOTIFY_SOCKET": str(self.runtime / "notify"),
                    "RUNTIME_DIRECTORY": str(self.runtime),
                    "WATCHDOG_USEC": str(watchdog_usec),
                },
                stderr=journal.fileno(),
            )

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        self.launch()
        self.until_told("READY=1")

    def until_told(self, state: str) -> None:
        """Wait for a state of the service."""
        before = self.told().count(state)
        until(lambda: self._ended() or self.told().count(state) > before, state, 60)
        assert self.told().count(state) > before, self.journal.read_text()

    def until_status(self, words: str) -> None:
        """Wait for a status text with these words."""
        until(lambda: self.told() is not None and words in self.status, words, 30)

    def told(self) -> list[str]:
        """Return the states that the service told of so far, READY=1 and the like."""
        with contextlib.suppress(BlockingIOError):
            while True:
                for line in self._notify.recv(4096).decode().split("\n"):
                    name, _, value = line.partition("=")
                    if name == "STATUS":
                        self.status = value
                        self.statuses.append(value)
                    elif name != "WATCHDOG":
                        self.states.append(line)
        return self.states

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def exit_status(self) -> int:
        """Wait for the end of the service, and return its exit status."""
        return self.process.wait(60)

    def stop(self) -> int:
        """Stop the service."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_status()

    def lines(self, level: str) -> list[str]:
        """Return the lines of the journal with a level; each line must have one."""
        found = []
        for line in self.journal.read_text().splitlines():
            assert line[:3] in _LEVELS, line
            if _LEVELS[line[:3]] == level:
                found.append(line[3:])
        return found


@contextlib.contextmanager
def managed(gateway: LabGateway) -> Iterator[Manager]:
    """Manage a gateway; it has ended afterwards."""
    manager = Manager(gateway)
    try:
        yield manager
    finally:
        manager.close()
