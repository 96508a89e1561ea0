"""Network namespaces for labs: two hosts and a wire between them, made and removed with `ip`.

A namespace's name ends in the process id of its maker, so that a later lab can tell what a killed
one has left and remove it.
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
        """Return the command line that runs `arguments` inside; it dies with its parent."""
        return ["ip", "netns", "exec", self.name, "setpriv", "--pdeathsig", "KILL", *arguments]

    def run(
        self, *arguments: str, timeout: float = COMMAND_TIMEOUT, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. Raises LabError where it fails and `check` is set."""
        return run_command(self.command(*arguments), timeout, check)

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a command inside and return it running."""
        return subprocess.Popen(
            self.command(*arguments),
            env={**os.environ, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    def ip(self, *arguments: str) -> str:
        """Run `ip` for this namespace and return what it prints. Raises LabError."""
        return run_command(["ip", "-n", self.name, *arguments], COMMAND_TIMEOUT, True).stdout


@contextlib.contextmanager
def namespaces(*roles: str) -> Iterator[list[Namespace]]:
    """Make namespaces, loopback up, and remove them in the end, whatever happened between."""
    remove_stale()
    made: list[Namespace] = []
    try:
        for role in roles:
            namespace = Namespace(f"{PREFIX}-{role}-{os.getpid()}")
            # Before it is there, so that an interrupt in between leaves nothing.
            made.append(namespace)
            run_command(["ip", "netns", "add", namespace.name], COMMAND_TIMEOUT, True)
            namespace.ip("link", "set", "lo", "up")
            # No waiting for IPv6 addresses to be found unique: a lab has no others.
            namespace.run("sh", "-c", f"echo 0 > {_ACCEPT_DAD}", check=False)
        yield made
    finally:
        for namespace in made:
            delete(namespace.name)


def wire(a: Namespace, b: Namespace, *, mtu: int = 1500, name: str = "wan") -> None:
    """Join two namespaces by a veth pair called `name` at both ends, up, without addresses."""
    peer = ["type", "veth", "peer", "name", name, "mtu", str(mtu), "netns", b.name]
    a.ip("link", "add", name, "mtu", str(mtu), *peer)
    for end in (a, b):
        end.ip("link", "set", name, "up")


def add_address(namespace: Namespace, address: str, device: str = "wan") -> None:
    """Give a device an address with its prefix length, usable at once."""
    nodad = ["nodad"] if ":" in address else []
    namespace.ip("address", "add", address, "dev", device, *nodad)


def delete(name: str) -> None:
    """Remove a namespace, and end the processes that are still in it."""
    pids = run_command(["ip", "netns", "pids", name], COMMAND_TIMEOUT, False).stdout.split()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run_command(["ip", "netns", "delete", name], COMMAND_TIMEOUT, False)


def remove_stale() -> None:
    """Remove what labs have left whose process is gone."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(NETNS_DIR.iterdir()):
            prefix, _, pid = entry.name.rpartition("-")
            is_ours = prefix.startswith(f"{PREFIX}-") and pid.isdecimal()
            if is_ours and not Path(f"/proc/{pid}").exists():
                delete(entry.name)


def end(process: subprocess.Popen[str], timeout: float = STOP_TIMEOUT) -> int:
    """End a process that we started: SIGTERM, then SIGKILL; return its exit status."""
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
    command: Sequence[str], timeout: float, check: bool
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises LabError where it can't, or fails and `check` is set."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is not installed") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"took longer than {timeout:.0f} s", where=" ".join(command)) from None
    if check and result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["it failed"]
        raise LabError(lines[-1], where=" ".join(command))
    return result
