"""Former spellings of commands, which go on for one release."""

from __future__ import annotations

import copy
from typing import Any

import click


def moved(command: click.Command, now: str) -> click.Command:
    """Return a command under its former name: hidden, with a note on stderr that names `now`."""
    former = copy.copy(command)
    former.hidden = True

    def run(*arguments: Any, **options: Any) -> Any:
        context = click.get_current_context()
        click.echo(f"note: '{context.command_path}' is '{now}' now", err=True)
        return context.invoke(command.callback, *arguments, **options) if command.callback else None

    former.callback = run
    return former
