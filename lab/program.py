"""A lab's command line: what is the same for each, whatever it does."""

from __future__ import annotations

import click

from esp_gw.demo.signals import ended_by_signals

INTERRUPTED = 130


def run_command_line(command: click.Command, name: str) -> int:
    """Run the command called `name` with this process's arguments; return its exit status.

    Click's errors are shown here; signals end it as Ctrl-C does. Raises LabError where it does.
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
