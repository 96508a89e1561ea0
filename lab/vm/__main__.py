"""`scripts/vm`: run a command in a virtual machine that sees the host's files."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from esp_gw.errors import LabError
from lab.program import run_command_line
from lab.vm.image import ARCHITECTURES, Architecture, kernel_image
from lab.vm.machine import Machine, VmError, run, run_all
from lab.vm.protocol import Command, Kind
from lab.vm.qemu import Setup
from lab.vm.root import Root, foreign_root, native_engine

FAILED = 125
"""Exit status if the machine failed, rather than the command in it."""
CONSOLE_LINES = 40
CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".vm"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def vm() -> None:
    """Run commands in virtual machines: Debian's kernel, emulated, over the host's files.

    A machine sees the host's whole root; a machine of another architecture sees a small root of its
    own and this checkout. Its writes stay in memory and are lost when it ends, except in /out.
    Everything runs at emulator speed. Exit status 125: the machine failed, not the command.
    """


def _machine_options(function: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option(
            "--arch", type=click.Choice(list(ARCHITECTURES)), default="x86_64", show_default=True
        ),
        click.option(
            "--cpu",
            metavar="MODEL",
            help="Processor model of qemu. [default: max; cortex-a76 for aarch64]",
        ),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder that the command sees as /out, for its results.",
        ),
        click.option(
            "--blacklist", metavar="MODULE,...", help="Kernel modules that can't be loaded inside."
        ),
        click.option(
            "--timeout",
            type=click.IntRange(1, 86400),
            default=300,
            show_default=True,
            metavar="SECONDS",
            help="Kill the machine after this time.",
        ),
        click.argument("command", nargs=-1, required=True),
    ):
        function = option(function)
    return function


@vm.command("run")
@_machine_options
def run_command(command: tuple[str, ...], timeout: int, **machine: Any) -> int:
    """Run COMMAND as root in a machine, in this folder; return its output and exit status."""
    setup, folder = _setup(**machine)
    deadline = time.monotonic() + timeout
    with Machine(setup) as running:
        return run(running, here(setup, command, folder), _print, deadline)


@vm.command("pair")
@_machine_options
def pair_command(command: tuple[str, ...], timeout: int, **machine: Any) -> int:
    """Run COMMAND in two machines at once, joined by a wire.

    $VM is a or b: a has 192.0.2.1 and 2001:db8::1 on its device 'wan', b has 192.0.2.2 and
    2001:db8::2. Both see the same /out. The run ends when both commands have ended, or when the
    first one fails.
    """
    setup, folder = _setup(**machine)
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair(type=socket.SOCK_DGRAM)]
        work = []
        for end, name in zip(ends, PAIR, strict=True):
            running = stack.enter_context(Machine(replace(setup, wire=end)))
            wired = here(setup, ("sh", "-c", _JOIN, PAIR[name], *command), folder)
            environment = {**wired.environment, "VM": name}
            printer = Printer(f"{name}: ".encode())
            stack.callback(printer.finish)
            work.append((running, replace(wired, environment=environment), printer))
        return run_all(work, deadline)


PAIR = {"a": "1", "b": "2"}
"""The machines of a pair, with the last part of their addresses."""
_JOIN = """
ip link set eth0 name wan && ip address add 192.0.2.$0/24 dev wan &&
ip address add 2001:db8::$0/64 dev wan nodad && ip link set wan up && exec "$@"
"""


class Printer:
    """Prints the output of one of several machines, each whole line behind a mark."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._begun = {Kind.STDOUT: b"", Kind.STDERR: b""}

    def __call__(self, kind: Kind, data: bytes) -> None:
        """Take a piece of output."""
        *whole, self._begun[kind] = (self._begun[kind] + data).split(b"\n")
        if whole:
            _print(kind, b"".join(self._mark + line + b"\n" for line in whole))

    def finish(self) -> None:
        """Print the unfinished lines."""
        for kind, begun in self._begun.items():
            if begun:
                self(kind, b"\n")


@vm.command("root")
@click.option("--arch", type=click.Choice(list(ARCHITECTURES)), required=True)
def root_command(arch: str) -> int:
    """Print the root folder of machines of another architecture; create it if necessary.

    It also serves programs under qemu-user: 'qemu-aarch64-static -L FOLDER FOLDER/usr/bin/python3'
    with this checkout as PYTHONPATH. Treat it as read-only.
    """
    print(_root(ARCHITECTURES[arch]).folder)
    return 0


def make_setup(arch: str, **fields: Any) -> Setup:
    """Describe a machine of a named architecture; fetch missing files. Raises LabError."""
    architecture = ARCHITECTURES[arch]
    image = kernel_image(CACHE, architecture, _say)
    if arch == platform.machine():
        return Setup(architecture, image, Path(sys.executable), **fields)
    root = _root(architecture)
    native = native_engine(CACHE, architecture, CHECKOUT / "dist", _say)
    if native is None:
        _say(f"no esp_gw_core wheel for {arch} in dist: the machine has only the python engine")
    paths = "".join(f"{path}\n" for path in (CHECKOUT, native) if path is not None)
    return Setup(
        architecture,
        image,
        Path("/usr/bin/python3"),
        root=root.folder,
        checkout=CHECKOUT,
        files={f"/{root.site}/esp-gw.pth": paths},
        **fields,
    )


def _root(architecture: Architecture) -> Root:
    return foreign_root(CACHE, architecture, CHECKOUT / "pyproject.toml", _say)


def _setup(
    arch: str, cpu: str | None, out: Path | None, blacklist: str | None
) -> tuple[Setup, Path]:
    """Return the setup that the options describe, and the working folder of commands."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    setup = make_setup(
        arch,
        cpu=cpu,
        out=out and out.resolve(),
        blacklist=tuple(blacklist.split(",")) if blacklist else (),
    )
    folder = Path.cwd()
    if setup.checkout is not None and not folder.is_relative_to(setup.checkout):
        raise LabError(
            "a machine of another architecture does not see this folder",
            where=str(folder),
            hint=f"run it in {setup.checkout}",
        )
    return setup, folder


def here(setup: Setup, arguments: tuple[str, ...], folder: Path) -> Command:
    """Return a command for `folder`, with the programs of the machine's Python in its PATH."""
    programs = setup.python.parent
    path = f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
    return Command(arguments, str(folder), {"PATH": path, "HOME": "/root", **kept})


def _print(kind: Kind, data: bytes) -> None:
    stream = sys.stdout if kind is Kind.STDOUT else sys.stderr
    stream.buffer.write(data)
    stream.buffer.flush()


def _say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line and return the exit status."""
    try:
        return run_command_line(vm, "scripts/vm")
    except VmError as error:
        for line in error.console.splitlines()[-CONSOLE_LINES:]:
            print(f"console: {line}", file=sys.stderr)
        _say(f"error: {error}")
    except LabError as error:
        _say(f"error: {error}")
    except BrokenPipeError:
        pass
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
