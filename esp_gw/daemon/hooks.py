"""Runs the configured program when a tunnel's state changes, without a shell and without waiting.

It runs as the user of the gateway, but without its capabilities, its environment and its priority:
the thread that starts it has given them up, and a child has what its thread has.

Sources: capabilities(7) on ambient capabilities, prctl(2), pidfd_open(2),
proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from esp_gw.health.news import Event
from esp_gw.logs import log
from esp_gw.model import TunnelState

TIMEOUT = 30.0
"""Seconds that a program may take."""
MAX_WAITING = 256
"""Tunnels whose last change may wait for its turn; the oldest goes first."""
_TELLING = (TunnelState.UP, TunnelState.DOWN, TunnelState.FAILING)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL = 38, 47, 4


class Hooks:
    """Runs a program for the changes that it is told of, one after another.

    `command` returns the program and its arguments at the moment, empty for none. Of several
    changes of a tunnel that wait, the last one counts.
    """

    def __init__(self, command: Callable[[], Sequence[str]]) -> None:
        self._command = command
        self._waiting: dict[str, Event] = {}
        self._more = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hook", initializer=_give_up)
        self._child: subprocess.Popen[bytes] | None = None
        self._reaping = threading.Lock()
        self._stopped = False

    def tell(self, event: Event) -> None:
        """Take a change of a tunnel; those to `quiet`, and of the cause alone, run nothing."""
        if not self._command():
            return
        waiting = self._waiting.pop(event.tunnel, None)
        before = event.before if waiting is None else waiting.before
        if event.state not in _TELLING or event.state == before:
            return
        if len(self._waiting) >= MAX_WAITING:
            lost = self._waiting.pop(next(iter(self._waiting)))
            log.warning("a hook was left out: too many changes", tunnel=lost.tunnel)
        self._waiting[event.tunnel] = replace(event, before=before)
        self._more.set()

    async def step(self) -> None:
        """Run the program for the next change; wait for one if there is none."""
        await self._more.wait()
        command = self._command()
        if not command:
            self._waiting.clear()
        if self._waiting:
            event = self._waiting.pop(next(iter(self._waiting)))
            loop = asyncio.get_running_loop()
            try:
                fault = await loop.run_in_executor(self._thread, self._run, command, event)
            except (OSError, RuntimeError, ValueError) as error:
                # No thread or descriptor is left, say: no reason to end a tunnel.
                fault = str(error)
            if fault:
                log.warning("a hook failed", tunnel=event.tunnel, state=event.state, reason=fault)
        if not self._waiting:
            self._more.clear()

    def stop(self) -> None:
        """End the program that runs; no other is run."""
        self._stopped = True
        # Otherwise its end is here already.
        if self._reaping.acquire(blocking=False):
            if self._child is not None:
                _kill(self._child)
            self._reaping.release()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, command: Sequence[str], event: Event) -> str:
        """Run a program to its end, in the thread; return what went wrong, or nothing."""
        if self._stopped:
            return ""
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(event),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            return f"{command[0]}: {error.strerror}"
        self._child = child
        _expose(child.pid)
        try:
            in_time = _ends(child, TIMEOUT)
        finally:
            with self._reaping:
                # Also what it has left in the background, while its number can't be another's.
                _kill(child)
                status = child.wait()
                self._child = None
        if not in_time:
            return f"{command[0]}: not done within {TIMEOUT:g} s, and ended"
        if status == 0 or self._stopped:
            return ""
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"{command[0]}: {how}"


def _ends(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a program, and leave its exit status; return False without one."""
    descriptor = os.pidfd_open(child.pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _environment(event: Event) -> dict[str, str]:
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "ESP_GW_TUNNEL": event.tunnel,
        "ESP_GW_STATE": str(event.state),
        "ESP_GW_BEFORE": str(event.before),
        "ESP_GW_CAUSE": event.cause or "",
    }


def _give_up() -> None:
    """Give up what this thread has beyond an ordinary process, for the programs that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)


def _expose(pid: int) -> None:
    """Let the kernel end a program before the gateway where memory is short."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("0")


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
