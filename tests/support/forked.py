"""Daemons forked from a process that has imported the gateway.

Each of the lab's thousand daemons would import the same modules for half a second of a processor.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import cast

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import NETNS_DIR, Namespace
from tests.support.engines import ENGINES

_PRELOADED = ["esp_gw.cli.main", "esp_gw.cli.guard", "esp_gw.daemon.main", __name__]
_OF_AN_ENGINE = {"native": "esp_gw_core", "python": "uvloop"}
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

_context = multiprocessing.get_context("forkserver")
_spawn_by_exec = LabGateway.spawn


class ForkedProcess:
    """The part of subprocess.Popen that the lab uses, of a process that is not our child."""

    stdin = stdout = stderr = None

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self.args = "esp-gw"
        self.pid = process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def fork_daemons() -> None:
    """Fork every LabGateway that has no environment or kind of namespace of its own."""
    _context.set_forkserver_preload([*_PRELOADED, *(_OF_AN_ENGINE[name] for name in ENGINES)])
    LabGateway.spawn = _spawn  # type: ignore[method-assign]


def _spawn(
    gateway: LabGateway, arguments: Sequence[str], env: Mapping[str, str]
) -> subprocess.Popen[str]:
    # A namespace of another class runs its programs in a world of its own.
    if gateway.env or type(gateway.namespace) is not Namespace:
        return _spawn_by_exec(gateway, arguments, env)
    parameters = (gateway.namespace.name, list(arguments), dict(env), gateway.log)
    process = _context.Process(target=_run, args=parameters, daemon=True)
    process.start()
    return cast("subprocess.Popen[str]", ForkedProcess(process))


def _run(namespace: str, arguments: list[str], env: dict[str, str], log: Path) -> None:
    """Run the program in a namespace, as `ip netns exec` and `setpriv --pdeathsig` do."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    with (NETNS_DIR / namespace).open() as file:
        _check(libc.setns(file.fileno(), _CLONE_NEWNET))
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(b"", b"/", b"none", _MS_SLAVE | _MS_REC, None))
    _check(libc.umount2(b"/sys", _MNT_DETACH))
    _check(libc.mount(namespace.encode(), b"/sys", b"sysfs", 0, None))
    _bind_etc(libc, Path("/etc/netns") / namespace)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, file in enumerate((nowhere, nowhere, output)):
        os.dup2(file, number)
    os.environ.update(env)
    from esp_gw.cli.main import main

    sys.exit(main(arguments))


def _bind_etc(libc: ctypes.CDLL, folder: Path) -> None:
    for file in folder.iterdir() if folder.is_dir() else ():
        there = Path("/etc") / file.name
        _check(libc.mount(bytes(file), bytes(there), b"none", 4096, None))


def _check(returned: int) -> None:
    if returned == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
