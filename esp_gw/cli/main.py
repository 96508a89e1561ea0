"""The command `esp-gw`: its subcommands, and the mapping of errors to a line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from esp_gw.cli.bench import bench
from esp_gw.cli.completion import completion
from esp_gw.cli.config import check, config
from esp_gw.cli.demo import demo
from esp_gw.cli.denial import SUDO, is_ordinary_user, with_sudo
from esp_gw.cli.doctor import doctor
from esp_gw.cli.explain import explain
from esp_gw.cli.gateway import reload, run, stats, status
from esp_gw.cli.guard import guard
from esp_gw.cli.invite import invite, join
from esp_gw.cli.ledger import ledger
from esp_gw.cli.log import log
from esp_gw.cli.monitor import monitor
from esp_gw.cli.moved import moved
from esp_gw.cli.options import Daemon
from esp_gw.cli.output import counted
from esp_gw.cli.overview import Overview
from esp_gw.cli.policy import policy
from esp_gw.cli.profile import profile
from esp_gw.cli.provision import init, keygen
from esp_gw.cli.sa import sa
from esp_gw.cli.tune import tune
from esp_gw.cli.tunnel import tunnel
from esp_gw.desired import GatewaySettings
from esp_gw.errors import FAILED, INTERRUPTED, ConfigError, EspGwError, printable
from esp_gw.limits import named

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


@click.group(cls=Overview, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    type=click.Path(readable=False, path_type=Path),
    show_default=GatewaySettings().control_socket,
    envvar="ESP_GW_SOCKET",
    help="Control socket of the daemon.",
)
@click.version_option(package_name="esp-gw", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, socket: Path | None) -> None:
    """Userspace IPsec ESP gateway."""
    context.obj = Daemon(socket)


for command in (
    run,
    config,
    init,
    invite,
    join,
    keygen,
    ledger,
    guard,
    sa,
    policy,
    tunnel,
    status,
    stats,
    monitor,
    log,
    explain,
    reload,
    doctor,
    tune,
    profile,
    demo,
    bench,
    completion,
):
    cli.add_command(command)
cli.add_command(moved(check, "esp-gw config check"))


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status. Errors go to stderr, without a traceback."""
    with _journal_levels():
        return _run(args)


def _journal_levels() -> contextlib.AbstractContextManager[None]:
    if "JOURNAL_STREAM" not in os.environ:
        return contextlib.nullcontext()
    from esp_gw.logs import journal_levels  # noqa: PLC0415 - a command has no use for logging

    return journal_levels()


def _run(args: Sequence[str] | None) -> int:
    _replace_closed_stdout()
    try:
        result = cli.main(args, prog_name="esp-gw", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        _complain(_usage(error))
        return error.exit_code
    except ConfigError as error:
        for problem in error.problems:
            _complain(str(problem))
        problems = counted(len(error.problems), "problem")
        sudo = f"; {SUDO}" if error.is_denied and is_ordinary_user() else ""
        _complain(f"esp-gw: error: {problems} in the configuration{sudo}")
        return error.exit_status
    except Exception as error:
        return _failed(error)
    return result if isinstance(result, int) else 0


def _replace_closed_stdout() -> None:
    """Make what is written to a closed stdout an error, and keep its number from other files."""
    if sys.stdout is None:
        unwritable = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        # Without a buffer, whose rest would be a second error at the end of the process.
        raw = os.fdopen(unwritable, "wb", buffering=0)
        sys.stdout = io.TextIOWrapper(raw, write_through=True)


def _failed(error: Exception) -> int:
    told = named(error) or _unwritten(error) or error
    if isinstance(told, EspGwError):
        _complain(f"esp-gw: error: {with_sudo(told)}")
        return told.exit_status
    _complain_internal(error)
    return FAILED


def _unwritten(error: Exception) -> EspGwError | None:
    """Return the error of a full or failing device behind stdout, or None for any other."""
    # One of a file has its name.
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
        return EspGwError(os.strerror(error.errno), where="stdout")
    return None


def _usage(error: click.ClickException) -> str:
    """Return a wrong command line as one line: command, fault, help."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "esp-gw"
    message = error.format_message().rstrip(".")
    return f"{command}: error: {message}; see '{command} --help'"


def _complain(text: str) -> None:
    click.echo(printable(text), err=True)


def _complain_internal(error: Exception) -> None:
    """Report a bug as one line, with a traceback only if ESP_GW_DEBUG is set."""
    from esp_gw.logs import scrub  # noqa: PLC0415 - rarely needed

    text = scrub(f"{type(error).__name__}: {error}")
    _complain(f"esp-gw: internal error: {text}; set ESP_GW_DEBUG=1 to see where")
    if os.environ.get("ESP_GW_DEBUG"):
        import traceback  # noqa: PLC0415

        click.echo(scrub("".join(traceback.format_exception(error))), err=True)


if __name__ == "__main__":
    sys.exit(main())
