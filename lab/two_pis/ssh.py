"""A machine reached by ssh: one connection for any number of commands."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

from esp_gw.errors import LabError

COMMAND_TIMEOUT = 120.0
_UNREACHABLE = 255
_READY = "esp-gw-ready"
_STOP_TIMEOUT = 10.0


class Host:
    """An open connection to `name`, a destination for ssh and its configuration."""

    def __init__(self, name: str, folder: Path) -> None:
        """Connect; ssh may prompt on the terminal. Raises LabError.

        Commands share the connection by a control socket in `folder`. It ends with this process.
        """
        self.name = name
        self._socket = folder / str(len(list(folder.iterdir())))
        self._errors = self._socket.with_suffix(".errors")
        settings = ("ControlMaster=yes", "ConnectTimeout=20", "ServerAliveInterval=15")
        with self._errors.open("wb") as errors:
            # The remote cat ends at EOF, so the connection does not outlive us.
            self._master = self._ssh(f"echo {_READY}; exec cat", settings, errors)
        assert self._master.stdout is not None  # noqa: S101 - for types
        for line in self._master.stdout:
            if line.strip() == _READY:
                return
        self.close()
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        raise LabError(
            f"no connection: {lines[-1]}" if lines else "no connection",
            where=name,
            hint=f"see what 'ssh {name} true' says",
        )

    def run(
        self, command: str, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command to its end, whatever its status. Raises LabError."""
        try:
            result = subprocess.run(
                self._line(command, ("BatchMode=yes",)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"no answer for {timeout:.0f} s", where=self.name) from None
        if result.returncode == _UNREACHABLE:
            lines = result.stderr.strip().splitlines() or ["ssh failed"]
            raise LabError(f"the connection broke: {lines[-1]}", where=self.name)
        return result

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a shell command with piped stdin, and stderr merged into stdout."""
        return self._ssh(command, ("BatchMode=yes",), subprocess.STDOUT)

    def close(self) -> None:
        """Close the connection."""
        stop(self._master)

    def _ssh(
        self, command: str, settings: tuple[str, ...], errors: IO[bytes] | int
    ) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                self._line(command, settings),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise LabError("ssh is not installed") from None

    def _line(self, command: str, settings: tuple[str, ...]) -> list[str]:
        options = [word for setting in settings for word in ("-o", setting)]
        return ["ssh", "-T", "-S", str(self._socket), *options, "--", self.name, command]


def stop(process: subprocess.Popen[str]) -> None:
    """End a remote command by closing its input; kill our side if it does not end."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
