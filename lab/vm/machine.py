"""One virtual machine: a qemu process that never outlives us, and the commands run in it."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from esp_gw.errors import LabError
from lab.vm.monitor import Monitor
from lab.vm.protocol import Command, Frame, FrameReader, Kind
from lab.vm.qemu import MEMORY_MB, Setup, command_line, make_initramfs

_SPARE_MB = 256
"""Memory that qemu needs in addition to the machine's."""


class VmError(LabError):
    """A machine could not be started, ended by itself, or hung; `console` is its console output."""

    def __init__(self, what: str, console: str = "", *, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.console = console


Output = Callable[[Kind, bytes], object]


class Machine:
    """A running machine; one command at a time. As a context manager, closes at the block's end.

    The thread that created it must stay alive: when that thread ends, the kernel kills qemu.
    """

    def __init__(self, setup: Setup) -> None:
        """Start booting. Raises VmError if qemu or the memory for it is missing."""
        self._reader = FrameReader()
        program = setup.architecture.qemu[0]
        if shutil.which(program) is None:
            raise VmError(f"{program} is not installed", hint="run ./scripts/vm, which installs it")
        _need_memory(MEMORY_MB + _SPARE_MB)
        with contextlib.ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="esp-gw-vm-"))
            )
            self._console = self._folder / "console"
            (self._folder / "initramfs").write_bytes(make_initramfs(setup))
            self._port, port = socket.socketpair()
            stack.callback(self._port.close)
            ours, theirs = socket.socketpair()
            self.monitor = Monitor(ours)
            stack.callback(self.monitor.close)
            with port, theirs, (self._folder / "qemu").open("wb") as log:
                descriptors = [port.fileno(), theirs.fileno()]
                if setup.wire is not None:
                    descriptors.append(setup.wire.fileno())
                self._process = subprocess.Popen(
                    command_line(setup, self._folder, *descriptors),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=descriptors,
                )
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            self._stack = stack.pop_all()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the machine at once: its writes to /out were synced when its command ended."""
        self._stack.close()

    def wait(self, deadline: float) -> None:
        """Wait until the machine has powered itself off. Raises VmError at `deadline`."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise VmError("the machine did not power off in time", self.console()) from None

    def fileno(self) -> int:
        """The file descriptor that becomes readable on output of the machine."""
        return self._port.fileno()

    def begin(self, command: Command) -> None:
        """Queue a command, to run once the machine has booted."""
        self._port.sendall(command.encode())

    def receive(self) -> Iterator[Frame]:
        """Read once from the machine and yield its frames. Raises VmError if it has ended."""
        try:
            data = self._port.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            self._process.wait()
            raise VmError(self._failure_reason(), self.console())
        yield from self._reader.feed(data)

    def console(self) -> str:
        """Return the console output so far: the kernel's and the init script's."""
        with contextlib.suppress(FileNotFoundError):
            return self._console.read_text(errors="replace")
        return ""

    def _failure_reason(self) -> str:
        log = (self._folder / "qemu").read_text(errors="replace").strip().splitlines()
        failures = [line for line in self.console().splitlines() if line.startswith("esp-gw-vm: ")]
        return (log[-1:] or failures[:1] or ["the machine ended by itself"])[0]


def run(machine: Machine, command: Command, output: Output, deadline: float) -> int:
    """Run a command in a machine to its end and return its exit status (128 + N for signal N).

    Raises VmError if the machine ends first, or at `deadline` (monotonic time).
    """
    return run_all([(machine, command, output)], deadline)


def run_all(work: Sequence[tuple[Machine, Command, Output]], deadline: float) -> int:
    """Run commands side by side, one in each machine; return 0 when all have succeeded.

    Returns the status of the first failure at once. Raises VmError as `run` does.
    """
    with selectors.DefaultSelector() as selector:
        for machine, command, output in work:
            machine.begin(command)
            selector.register(machine, selectors.EVENT_READ, output)
        while running := list(selector.get_map().values()):
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                machine = running[0].fileobj  # type: ignore[assignment]
                what = "the machine did not end in time and was killed"
                raise VmError(what, machine.console())
            for key, _ in ready:
                status = _pass_on(key.fileobj, key.data)  # type: ignore[arg-type]
                if status:
                    return status
                if status == 0:
                    selector.unregister(key.fileobj)
    return 0


def _pass_on(machine: Machine, output: Output) -> int | None:
    """Forward the machine's output; return the status of its command once that has ended."""
    for frame in machine.receive():
        if frame.kind is Kind.EXIT:
            return frame.status
        output(frame.kind, frame.payload)
    return None


def _need_memory(megabytes: int) -> None:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) >> 10
    if available < megabytes:
        raise VmError(
            f"a machine needs {megabytes} MB of memory, only {available} MB are available",
            hint="free some memory first",
        )
