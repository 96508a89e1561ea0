"""A machine that is reached by ssh: one connection, as many commands as it takes."""

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
    """An open connection to `name`, as ssh and its configuration know it."""

    def __init__(self, name: str, folder: Path) -> None:
        """Connect; ssh asks a person for what it needs. Raises LabError.

        The connection is shared by a socket in `folder`, and ends with this process.
        """
        self.name = name
        self._socket = folder / str(len(list(folder.iterdir())))
        self._errors = self._socket.with_suffix(".errors")
        settings = ("ControlMaster=yes", "ConnectTimeout=20", "ServerAliveInterval=15")
        with self._errors.open("wb") as errors:
            # The remote cat ends when its input does, whatever happens to us.
            self._master = self._ssh(f"echo {_READY}; exec cat", settings, errors)
        assert self._master.stdout is not None  # noqa: S101 - for types
        for line in self._master.stdout:
            if line.strip() == _READY:
                return
        self.close()
        said = self._errors.read_text(errors="replace").strip().splitlines()
        raise LabError(
            f"no connection: {said[-1]}" if said else "no connection",
            where=name,
            hint=f"see what 'ssh {name} true' says",
        )

    def run(
        self, command: str, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell's command to its end, whatever its status is. Raises LabError."""
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
            said = result.stderr.strip().splitlines() or ["ssh failed"]
            raise LabError(f"the connection broke: {said[-1]}", where=self.name)
        return result

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a shell's command; its input is ours, its errors are in its output."""
        return self._ssh(command, ("BatchMode=yes",), subprocess.STDOUT)

    def close(self) -> None:
        """End the connection."""
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
    """End a command at the other end by the end of its input, or our side of it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
