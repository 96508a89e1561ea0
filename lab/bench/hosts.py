"""Two hosts for a system, and its daemons: started, watched and ended together.

Only the measured system runs: it is started for its turn and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from esp_gw.demo.netns import Namespace, add_address, end, namespaces, run_command, wire
from esp_gw.errors import LabError
from lab.bench.model import Link
from lab.bench.ping import answers
from lab.waiting import holds_within

START_TIMEOUT = 20.0
OUTER = ("192.0.2.1", "192.0.2.2")


@contextlib.contextmanager
def two_hosts(*roles: str) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a wire with the addresses OUTER."""
    with namespaces(*(roles or ("a", "b"))) as (a, b):
        wire(a, b)
        for host, address in zip((a, b), OUTER, strict=True):
            add_address(host, f"{address}/24")
        yield a, b


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_TIMEOUT) -> None:
    """Wait for a condition. Raises LabError with the message `what` if it doesn't hold in time."""
    if not holds_within(seconds, condition):
        raise LabError(what)


def wait_for_traffic(link: Link) -> None:
    """Wait until a ping through the link is answered. Raises LabError."""
    wait_until(lambda: answers(link), "no ping came through the tunnel")


class Daemons:
    """Processes of one link: each with its own log, ended together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[subprocess.Popen[str], Path]] = []

    def start(self, host: Namespace, *command: str) -> int:
        """Start a daemon in a mount namespace with a private /run; return its process id."""
        log = self._folder / f"{len(self._running)}.log"
        with log.open("w") as output:
            process = host.start(
                *("sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"),
                *command,
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
        self._running.append((process, log))
        return process.pid

    def check(self) -> None:
        """Raise LabError with the last log line of a daemon that has ended."""
        for process, log in self._running:
            if process.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise LabError(lines[-1] if lines else "a daemon ended without output")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while all daemons run. Raises LabError."""

        def happened() -> bool:
            self.check()
            return condition()

        wait_until(happened, what)

    def end(self) -> None:
        """End all daemons."""
        for process, _ in self._running:
            end(process)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Daemons]:
    """Daemons that are ended with the block, with their logs in `folder`."""
    daemons = Daemons(folder)
    try:
        yield daemons
    finally:
        daemons.end()


def succeeds(command: Sequence[str]) -> bool:
    """True if a command succeeds within START_TIMEOUT."""
    return run_command(command, START_TIMEOUT, False).returncode == 0


def checked(command: Sequence[str]) -> None:
    """Run a command. Raises LabError with the last line that it printed if it fails."""
    result = run_command(command, START_TIMEOUT, False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise LabError(lines[-1] if lines else f"{Path(command[2]).name} failed")
