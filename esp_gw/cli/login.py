"""The ssh connection by which the caller of a command is logged in.

sudo takes SSH_CONNECTION out of the environment; root finds it in that of the shell around it.

Sources: ssh(1), proc_pid_environ(5), proc_pid_stat(5).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from esp_gw.network.surroundings import Login

VARIABLE = "SSH_CONNECTION"
_PROC = Path("/proc")
_MAX_DEPTH = 32


def find_login(
    environment: Mapping[str, str] = os.environ, pid: int | None = None, proc: Path = _PROC
) -> Login | None:
    """Return the login of this process, else that of `pid` or its nearest ancestor with one."""
    text = environment.get(VARIABLE)
    return _parsed(text) if text else _above(os.getppid() if pid is None else pid, proc)


def _above(pid: int, proc: Path) -> Login | None:
    for _ in range(_MAX_DEPTH):
        if pid <= 1:
            return None
        try:
            content = (proc / str(pid) / "environ").read_bytes()
            stat = (proc / str(pid) / "stat").read_text()
        except OSError:
            return None
        for entry in content.split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == VARIABLE.encode() and value:
                return _parsed(value.decode(errors="replace"))
        # The name of the program, in parentheses, may have spaces.
        pid = int(stat.rpartition(")")[2].split()[1])
    return None


def _parsed(text: str) -> Login | None:
    """Return the addresses of `PEER PORT LOCAL PORT`, None for any other text."""
    try:
        peer, _, local, port = text.split()
        # A link-local address may have a zone.
        ends = [ip_address(each.partition("%")[0]) for each in (peer, local)]
        return Login(ends[0], ends[1], int(port))
    except ValueError:
        return None
