"""Shared entry point of the labs' command lines."""

from __future__ import annotations

import click

from esp_gw.demo.signals import ended_by_signals
from esp_gw.errors import INTERRUPTED


def run_command_line(command: click.Command, name: str) -> int:
    """Run the command `name` with this process's arguments; return its exit status.

    Prints Click's errors. Signals end it as Ctrl-C does. Propagates the command's LabError.
    """
    try:
        with ended_by_signals():
            status: int = command.main(prog_name=name, standalone_mode=False)
            return status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
