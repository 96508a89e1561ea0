"""Samples of a gateway's threads by perf(1), as stacks under the stages of a packet's way.

Sources: perf-record(1), perf-script(1), proc(5).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from esp_gw.engine.stages import Stage

FREQUENCY = 997
"""Samples a second of each thread; no divisor of a timer's."""
MAX_SAMPLES = 30_000
"""Samples of all threads, about: an hour's would fill disk and memory, and say no more."""
_PATIENCE = 5.0
_READING = 300.0
"""Seconds for perf to name the functions of its samples, at most."""
WAIT, OTHER = "wait", "other"

# A system call's part of the stack begins with these functions of the kernel, whatever the packet
# meets below them.
_KERNEL = (
    # Workers read and write nothing else by these.
    ("do_readv", Stage.TUN_READ),
    ("do_writev", Stage.TUN_WRITE),
    ("sys_sendmsg", Stage.SEND),
    ("sys_sendmmsg", Stage.SEND),
    ("sys_recvmmsg", Stage.RECEIVE),
    ("sys_recvmsg", Stage.RECEIVE),
    ("epoll", WAIT),
)
# The functions of a library have no caller in a stack without frame pointers: the innermost counts.
_USER = (
    (
        re.compile(r"gcm.*enc|enc.*gcm|seal_scatter|Aead>::seal|esp::(encap|seq)|worker::sealing"),
        Stage.SEAL,
    ),
    (re.compile(r"gcm.*dec|dec.*gcm|open_gather|Aead>::open|esp::decap|esp::replay"), Stage.OPEN),
    (re.compile(r"offload::(coalesce|merge|super_packet)|wire::checksum"), Stage.MERGE),
    (
        re.compile(r"worker::(targets|arriving)|policy::|wire::(flow|vnet)|offload::segment"),
        Stage.LOOK_UP,
    ),
    (re.compile(r"worker::(sending|sender|batch)|esp_linux::(send|udp)"), Stage.SEND),
    (re.compile(r"esp_linux::recv"), Stage.RECEIVE),
    (re.compile(r"worker::(inbound|newest)"), Stage.OPEN),
    (re.compile(r"worker::writing"), Stage.TUN_WRITE),
)
_SAMPLE = re.compile(r"^\s*(?P<tid>\d+)\s+(?P<period>\d+)\s+(?P<event>\S+?):\s*$")
_FRAME = re.compile(r"^\s+[0-9a-f]+\s+(?P<symbol>.+?)\s*$")
_HASH = re.compile(r"::h[0-9a-f]{16}$")


@dataclass(frozen=True, slots=True)
class Samples:
    """perf's samples: stacks (thread, stage, functions) by the event that was counted."""

    stacks: Mapping[tuple[str, ...], int]
    event: str = ""

    @property
    def cycles(self) -> int | None:
        """The processor's cycles in all, if it counts them."""
        return sum(self.stacks.values()) if self.event.startswith("cycles") else None


def threads_of(pid: int, names: Iterable[str]) -> dict[int, str]:
    """Return the threads of a process that have one of these names, by thread id."""
    wanted, found = set(names), {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            if (name := (task / "comm").read_text().strip()) in wanted:
                found[int(task.name)] = name
    return found


def processor_ns(pid: int, threads: Iterable[int]) -> int:
    """Return the nanoseconds for which these threads of a process have run so far."""
    spent = 0
    for thread in threads:
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
            spent += int(text.split()[0])
    return spent


class Recording:
    """A perf that records some threads, into a folder that only the caller's user can read.

    `why` is the reason that nothing is recorded, or empty.
    """

    def __init__(self, folder: Path, threads: Mapping[int, str], seconds: int) -> None:
        self._threads = threads
        self._data = folder / "perf.data"
        self._process: subprocess.Popen[str] | None = None
        self.why = ""
        self._perf = shutil.which("perf")
        if self._perf is None:
            self.why = "perf is not installed"
            return
        listed = ",".join(str(thread) for thread in sorted(threads))
        # The workload ends with the seconds, or with its stdin: with us, whatever has ended us.
        # No build-ids: they fill ~/.debug.
        command = (
            *(
                self._perf,
                "record",
                "-q",
                "-g",
                "-B",
                "-N",
                "-F",
                str(_frequency(seconds, len(threads))),
            ),
            *("-t", listed, "-o", str(self._data), "--", "timeout", str(seconds + 1), "cat"),
        )
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # SIGINT of the terminal is for us.
            start_new_session=True,
        )

    def stop(self) -> None:
        """End the recording; what was recorded stays."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.why = "perf did not end"
            return
        if not self._data.exists():
            lines = said.split("\n")
            self.why = f"perf refuses: {next((each.strip() for each in lines if each.strip()), '')}"

    def samples(self) -> Samples:
        """Return what was recorded, once it has been stopped."""
        if self.why or self._perf is None:
            return Samples({})
        command = (
            *(self._perf, "script", "--no-inline", "-i", str(self._data)),
            *("-F", "tid,period,event,ip,sym"),
        )
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        ) as process:
            late = threading.Timer(_READING, process.kill)
            late.start()
            try:
                # Line by line: the text is many times as long as what becomes of it.
                found = parsed(process.stdout or (), self._threads)
            except BaseException:
                process.kill()
                raise
            finally:
                late.cancel()
        if process.returncode == -signal.SIGKILL:
            self.why = "perf did not name the functions in time"
        elif process.returncode:
            self.why = "perf can't read its own samples"
        return Samples({}) if self.why else found


def _frequency(seconds: int, threads: int) -> int:
    """Return the samples a second of each thread for a recording of this length."""
    return min(FREQUENCY, max(MAX_SAMPLES // (seconds * threads), 1))


@contextlib.contextmanager
def recording(threads: Mapping[int, str], seconds: int) -> Iterator[Recording]:
    """Record threads inside, for some seconds at most."""
    with tempfile.TemporaryDirectory(prefix="esp-gw-profile-") as folder:
        made = Recording(Path(folder), threads, seconds)
        try:
            yield made
        finally:
            made.stop()


def parsed(lines: Iterable[str], threads: Mapping[int, str]) -> Samples:
    """Return the stacks in the text of `perf script`, those of other threads left out."""
    stacks: Counter[tuple[str, ...]] = Counter()
    event, head, frames = "", None, list[str]()

    def take() -> None:
        if head is not None and (name := threads.get(int(head["tid"]))) is not None:
            outermost_first = frames[::-1]
            stacks[name, stage_of(outermost_first), *outermost_first] += int(head["period"])

    for line in lines:
        if (found := _SAMPLE.match(line)) is not None:
            take()
            head, frames, event = found, [], found["event"]
        elif (frame := _FRAME.match(line)) is not None:
            # Few names in many stacks: each is kept once.
            frames.append(sys.intern(_HASH.sub("", frame["symbol"])))
    take()
    return Samples(stacks, event)


def stage_of(frames: Iterable[str]) -> str:
    """Return the stage of a stack, the outermost function first; OTHER where none is known."""
    known = list(frames)
    for symbol in known:
        for part, stage in _KERNEL:
            if part in symbol:
                return stage
    for symbol in reversed(known):
        for pattern, stage in _USER:
            if pattern.search(symbol):
                return stage
    return OTHER
