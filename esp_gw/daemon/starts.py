"""Slower and slower starts of a gateway that can't start and is restarted again and again.

systemd restarts at one pace before version 254, and later (RestartSteps=) doesn't go back to the
first pace after a start that succeeded. So the gateway itself waits before its next try. The count
of tries is in the service's runtime directory, which lasts over restarts alone
(RuntimeDirectoryPreserve=restart): after a stop, and after a boot, nothing waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from esp_gw.daemon.systemd import Notifier
from esp_gw.logs import log

STARTS_NAME = "starts"
AT_ONCE = 2
"""Tries that don't wait: a first one, and one a moment later."""
LONGEST_WAIT = 60
"""Seconds."""
_STOP, _RETRY = {signal.SIGTERM, signal.SIGINT}, signal.SIGHUP


class Starts:
    """The starts in a row that did not succeed, with the reason of the last; none without a file.

    No method raises: what can't be counted doesn't wait.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.number, self.reason = self._read()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Starts:
        """Count in the first folder of $RUNTIME_DIRECTORY (systemd.exec(5)), under systemd."""
        folder = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        return cls(Path(folder) / STARTS_NAME if folder and "NOTIFY_SOCKET" in environ else None)

    def begin(self) -> int:
        """Count a start; return the seconds to wait before it."""
        self.number += 1
        self._write()
        if self.number <= AT_ONCE:
            return 0
        return int(min(2.0 ** min(self.number - AT_ONCE, 10), LONGEST_WAIT))

    def failed(self, reason: str) -> None:
        """Keep the reason, one line, for whoever looks while the next try waits."""
        self.reason = reason
        self._write()

    def forget(self) -> None:
        """Begin anew: a start succeeded, or somebody stopped the gateway."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[int, str]:
        try:
            number, _, reason = (
                "" if self._path is None else self._path.read_text(errors="replace")
            ).partition("\n")
            return int(number), reason.strip()
        except (OSError, ValueError):
            return 0, ""

    def _write(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.write_text(f"{self.number}\n{self.reason}\n", errors="replace")


def may_start(starts: Starts, notifier: Notifier) -> bool:
    """Wait as long as the former starts ask for; False if SIGTERM or SIGINT ends the waiting.

    SIGHUP, with which a person asks to look at the files again, ends it with a start.
    """
    seconds = starts.begin()
    if not seconds:
        return True
    log.info("waiting before the next try", seconds=seconds, tries=starts.number - 1)
    text = f"trying again within {seconds} s: {starts.reason or 'no reason known'}"
    # Whoever has read the text may send the signal at once.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP | {_RETRY})
    try:
        notifier.waiting(text, seconds)
        received = signal.sigtimedwait(_STOP | {_RETRY}, seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if received is not None and received.si_signo in _STOP:
        starts.forget()
        return False
    return True
