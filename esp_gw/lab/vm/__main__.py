"""`scripts/vm`: a command in a virtual machine that has this machine's files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from esp_gw.errors import LabError
from esp_gw.lab.signals import ended_by_signals
from esp_gw.lab.vm.image import ARCHITECTURES, kernel_image
from esp_gw.lab.vm.machine import Machine, Setup, VmError, run
from esp_gw.lab.vm.protocol import Command, Kind

FAILED = 125
"""The exit status when the machine failed, not the command in it."""
INTERRUPTED = 130
CONSOLE_LINES = 40
CHECKOUT = Path(__file__).parents[3]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def vm() -> None:
    """Run commands in virtual machines: Debian's kernel, emulated, over this machine's files.

    A machine sees this machine's whole root; what it writes is in its memory and gone with it, but
    for /out. Speed inside is an emulator's. Exit status 125: the machine failed, not the command.
    """


@vm.command("run")
@click.option("--arch", type=click.Choice(list(ARCHITECTURES)), default="x86_64", show_default=True)
@click.option("--cpu", metavar="MODEL", help="A processor as qemu calls it. [default: max]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder that the command sees as /out, to leave files in.",
)
@click.option("--blacklist", metavar="MODULE,...", help="Modules that can't be loaded inside.")
@click.option(
    "--timeout",
    type=click.IntRange(1, 86400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="When a machine is ended that has not.",
)
@click.argument("command", nargs=-1, required=True)
def run_command(
    arch: str,
    cpu: str | None,
    out: Path | None,
    blacklist: str | None,
    timeout: int,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND as root in a machine, in this folder; its output and exit status come back."""
    architecture = ARCHITECTURES[arch]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        architecture,
        kernel_image(CHECKOUT / ".vm", architecture, _say),
        Path(sys.executable),
        cpu=cpu,
        out=out and out.resolve(),
        blacklist=tuple(blacklist.split(",")) if blacklist else (),
    )
    deadline = time.monotonic() + timeout
    with Machine(setup) as machine:
        return run(machine, here(command), _print, deadline)


def here(arguments: tuple[str, ...]) -> Command:
    """Return a command that runs in this folder and finds this environment's programs."""
    folder = Path(sys.executable).parent
    path = f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
    return Command(arguments, str(Path.cwd()), {"PATH": path, "HOME": "/root", **kept})


def _print(kind: Kind, data: bytes) -> None:
    stream = sys.stdout if kind is Kind.STDOUT else sys.stderr
    stream.buffer.write(data)
    stream.buffer.flush()


def _say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line and return the exit status."""
    try:
        with ended_by_signals():
            status: int = vm.main(prog_name="scripts/vm", standalone_mode=False)
            return status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
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
