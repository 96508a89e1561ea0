"""The priority of the control plane's threads over the workers of the native engine."""

from __future__ import annotations

import contextlib
import os
import threading

from esp_gw.logs import log

CONTROL_NICE = -5
"""Nice value of the control plane, relative to that of the workers.

They keep theirs: with a worse one, overload by other programs took half of their throughput. The
worker of lane 0 has a better one, -11, which the native engine asks for: it carries little.
"""


def prefer_control() -> None:
    """Let the threads of Python, and those they start, run before the others of this process.

    Without CAP_SYS_NICE and with a small RLIMIT_NICE all stay equal (setpriority(2), sched(7)).
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0) + CONTROL_NICE
    for thread in threading.enumerate():
        # A thread may end after it was listed.
        with contextlib.suppress(ProcessLookupError):
            try:
                os.setpriority(os.PRIO_PROCESS, thread.native_id or 0, nice)
            except PermissionError:
                log.debug("the control plane has no priority over the data plane")
                return
