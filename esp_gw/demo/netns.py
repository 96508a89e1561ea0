"""Network namespaces for labs: hosts and the wires between them, managed with `ip`.

A namespace's name ends in the process id of its creator, so that a later lab can recognize and
remove the leftovers of a killed one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from esp_gw.errors import LabError

PREFIX = "espgw"
NETNS_DIR = Path("/run/netns")
_ACCEPT_DAD = "/proc/sys/net/ipv6/conf/default/accept_dad"
COMMAND_TIMEOUT = 180.0
STOP_TIMEOUT = 10.0


class Namespace:
    """One network namespace: a host of the lab."""

    def __init__(self, name: str) -> None:
        self.name = name

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs `arguments` inside, killed when its parent dies."""
        return ["ip", "netns", "exec", self.name, "setpriv", "--pdeathsig", "KILL", *arguments]

    def run(
        self, *arguments: str, timeout: float = COMMAND_TIMEOUT, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. Raises LabError if it fails and `check` is set."""
        return run_command(self.command(*arguments), timeout, check)

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a command inside and return its process."""
        return subprocess.Popen(
            self.command(*arguments),
            env={**os.environ, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    def ip(self, *arguments: str) -> str:
        """Run `ip` in this namespace and return its output. Raises LabError."""
        return run_command(["ip", "-n", self.name, *arguments], COMMAND_TIMEOUT, True).stdout


@contextlib.contextmanager
def namespaces(*roles: str) -> Iterator[list[Namespace]]:
    """Create namespaces with the loopback up; they are always removed at the end."""
    remove_stale()
    made: list[Namespace] = []
    try:
        for role in roles:
            namespace = Namespace(f"{PREFIX}-{role}-{os.getpid()}")
            # Recorded before it is created, so that an interrupt in between leaves nothing.
            made.append(namespace)
            run_command(["ip", "netns", "add", namespace.name], COMMAND_TIMEOUT, True)
            namespace.ip("link", "set", "lo", "up")
            # Addresses are usable at once, without waiting for duplicate address detection.
            namespace.run("sh", "-c", f"echo 0 > {_ACCEPT_DAD}", check=False)
        yield made
    finally:
        for namespace in made:
            delete(namespace.name)


def wire(a: Namespace, b: Namespace, *, mtu: int = 1500, name: str = "wan") -> None:
    """Connect two namespaces by a veth pair, up, called `name` at both ends, without addresses."""
    peer = ["type", "veth", "peer", "name", name, "mtu", str(mtu), "netns", b.name]
    a.ip("link", "add", name, "mtu", str(mtu), *peer)
    for end in (a, b):
        end.ip("link", "set", name, "up")


def add_address(namespace: Namespace, address: str, device: str = "wan") -> None:
    """Add an address with its prefix length to a device, without duplicate address detection."""
    nodad = ["nodad"] if ":" in address else []
    namespace.ip("address", "add", address, "dev", device, *nodad)


def delete(name: str) -> None:
    """Remove a namespace, and kill the processes that are still in it."""
    pids = run_command(["ip", "netns", "pids", name], COMMAND_TIMEOUT, False).stdout.split()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run_command(["ip", "netns", "delete", name], COMMAND_TIMEOUT, False)


def remove_stale() -> None:
    """Remove the namespaces of labs whose process is gone."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(NETNS_DIR.iterdir()):
            prefix, _, pid = entry.name.rpartition("-")
            is_ours = prefix.startswith(f"{PREFIX}-") and pid.isdecimal()
            if is_ours and not Path(f"/proc/{pid}").exists():
                delete(entry.name)


def end(process: subprocess.Popen[str], timeout: float = STOP_TIMEOUT) -> int:
    """Stop a process that we started, by SIGTERM, then SIGKILL; return its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    return process.returncode


def run_command(
    command: Sequence[str],
    timeout: float,
    check: bool,
    *,
    where: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises LabError if it can't be run or times out, or if it fails and `check` is set. `where`
    names it in the error, by default the whole command line.
    """
    if where is None:
        where = " ".join(command)
    try:
        result = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is not installed") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"took longer than {timeout:.0f} s", where=where) from None
    if check and result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["it failed"]
        raise LabError(lines[-1], where=where)
    return result
