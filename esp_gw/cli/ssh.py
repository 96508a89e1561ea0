"""The other gateway by ssh, for `esp-gw join ssh:HOST`: its invitation, and the start of both."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from esp_gw.errors import EspGwError, printable

_CONNECT = ("-T", "-o", "ConnectTimeout=20")
_START = (
    "if systemctl is-active --quiet esp-gw; then esp-gw reload;"
    " else systemctl enable --now esp-gw; fi"
)
_LIMIT = 300.0
"""Seconds for a command, and for a person who types a password."""


class Host:
    """A machine that ssh reaches, named as ssh names it; its user may run sudo without a password.

    Methods raise EspGwError: ssh is missing, or the command fails there.
    """

    def __init__(self, target: str) -> None:
        if not target or target.startswith("-"):
            raise EspGwError(
                f"'{printable(target)}' is no host", where="ssh", hint="write ssh:user@host"
            )
        self._target = target

    def invite(self, name: str, local_nets: Sequence[str], remote_nets: Sequence[str]) -> str:
        """Return an invitation for a gateway of this name; the networks are as that host has them.

        The other end's address is that by which ssh reaches it.
        """
        command = ["sudo", "-n", "esp-gw", "invite", name, "--address", self._host_name()]
        for option, nets in (("--local-net", local_nets), ("--remote-net", remote_nets)):
            for net in nets:
                command += [option, net]
        return self._run(shlex.join(command))

    def start(self) -> None:
        """Start the gateway there, or have the running one read its configuration."""
        self._run(f"sudo -n sh -c {shlex.quote(_START)}")

    def _host_name(self) -> str:
        """Return the name or address that ssh's configuration has for this host."""
        lines = _output(["ssh", "-G", "--", self._target], "ssh").splitlines()
        found = dict(line.split(" ", 1) for line in lines if " " in line)
        return found.get("hostname", self._target.rpartition("@")[2])

    def _run(self, command: str) -> str:
        return _output(["ssh", *_CONNECT, "--", self._target, command], printable(self._target))


def start_here() -> None:
    """Start the gateway of this machine, or have the running one read its configuration.

    Raises EspGwError.
    """
    _output(["sh", "-c", _START], "esp-gw.service")


def _output(command: Sequence[str], where: str) -> str:
    """Run a command whose errors go to our stderr; return its output."""
    try:
        result = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, text=True, timeout=_LIMIT
        )
    except FileNotFoundError:
        raise EspGwError(
            f"{command[0]} is not installed", where=where, hint=f"install {command[0]}"
        ) from None
    except subprocess.TimeoutExpired:
        raise EspGwError(f"no end within {_LIMIT:.0f} seconds", where=where) from None
    if result.returncode != 0:
        raise EspGwError(
            f"the command failed there with exit status {result.returncode}",
            where=where,
            hint="see above; it needs esp-gw there, and sudo without a password",
        )
    return result.stdout
