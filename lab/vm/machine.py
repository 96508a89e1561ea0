"""One virtual machine: a qemu process that never outlives us, and the commands run in it."""

from __future__ import annotations

import contextlib
import secrets
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from esp_gw.errors import LabError
from lab.vm import initramfs
from lab.vm.image import Architecture, Image
from lab.vm.protocol import Command, Frame, FrameReader, Kind

MEMORY_MB = 1024
PROCESSORS = 2
_SPARE_MB = 256
"""Memory that qemu needs in addition to the machine's."""


class VmError(LabError):
    """A machine could not be started, ended by itself, or hung; `console` is its console output."""

    def __init__(self, what: str, console: str = "", *, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.console = console


@dataclass(frozen=True, slots=True)
class Setup:
    """Parameters of a machine.

    `root` is the folder of the host that serves as the machine's root, `python` the interpreter in
    it that runs the agent. `checkout` is a folder mounted at its own path, for a root that isn't
    the host's. `files` are written inside before anything runs. `out` is the folder of the host
    mounted at /out. Modules in `blacklist` can't be loaded. `wire` is one end of a datagram socket
    pair that serves as the machine's network card.
    """

    architecture: Architecture
    image: Image
    python: Path
    cpu: str | None = None
    root: Path = Path("/")
    checkout: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None
    blacklist: tuple[str, ...] = ()
    wire: socket.socket | None = None


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
            (self._folder / "initramfs").write_bytes(_initramfs(setup))
            self._port, theirs = socket.socketpair()
            stack.callback(self._port.close)
            with theirs, (self._folder / "qemu").open("wb") as log:
                descriptors = [theirs.fileno()]
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


def command_line(setup: Setup, folder: Path, port: int, wire: int | None = None) -> list[str]:
    """Return qemu's command line; `port` and `wire` are file descriptors that it inherits.

    `folder` holds the initramfs and receives the console output.
    """
    architecture = setup.architecture
    append = f"{architecture.boot} loglevel=6 panic=-1 random.trust_cpu=on"
    shares = [("host", setup.root, ",readonly=on")]
    if setup.checkout is not None:
        shares.append(("checkout", setup.checkout, ",readonly=on"))
    if setup.out is not None:
        shares.append(("out", setup.out, ""))
    arguments = [
        # However we die, the kernel kills qemu with us.
        *("setpriv", "--pdeathsig", "KILL"),
        *architecture.qemu,
        *("-nodefaults", "-display", "none", "-no-reboot", "-no-user-config"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", setup.cpu or architecture.cpu),
        *("-smp", str(PROCESSORS)),
        *("-m", str(MEMORY_MB)),
        *("-kernel", str(setup.image.kernel)),
        *("-initrd", str(folder / "initramfs")),
        *("-append", append),
        *("-chardev", f"file,id=console,path={_escaped(folder / 'console')}"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,fd={port}"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,nr=1"),
        *("-device", "virtio-rng-pci"),
    ]
    for name, path, mode in shares:
        model = "security_model=none,multidevs=remap"
        arguments += ["-fsdev", f"local,id={name},path={_escaped(path)},{model}{mode}"]
        arguments += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    if wire is not None:
        arguments += ["-netdev", f"dgram,id=wire,local.type=fd,local.str={wire}"]
        # Two machines on one wire must not share qemu's default MAC address.
        mac = "52:54:00:" + secrets.token_bytes(3).hex(":")
        arguments += ["-device", f"virtio-net-pci,netdev=wire,romfile=,mac={mac}"]
    return arguments


def _escaped(path: Path) -> str:
    # A comma ends an option's value; a doubled comma stands for one.
    return str(path).replace(",", ",,")


def _initramfs(setup: Setup) -> bytes:
    image = setup.image
    dep, builtin = ((image.tree / f"modules.{name}").read_text() for name in ("dep", "builtin"))
    load = initramfs.load_order(dep, builtin, initramfs.MODULES)
    agent = (str(setup.python), "-m", "lab.vm.agent", initramfs.PORT)
    written = {**setup.files, initramfs.BLACKLIST: initramfs.blacklist_file(setup.blacklist)}
    script = initramfs.init_script(
        load,
        image.version,
        str(image.tree),
        agent,
        written,
        str(setup.checkout) if setup.checkout else None,
        setup.out is not None,
    )
    files = {"/init": script, "/bin/busybox": image.busybox()}
    for path in load:
        files[f"{initramfs.MODULES_INSIDE}/{initramfs.module_name(path)}.ko"] = image.module(path)
    return initramfs.archive(files)


def _need_memory(megabytes: int) -> None:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) >> 10
    if available < megabytes:
        raise VmError(
            f"a machine needs {megabytes} MB of memory, only {available} MB are available",
            hint="free some memory first",
        )
