"""`esp-gw completion`, and the names that a shell completes: those of the running gateway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from esp_gw.control.client import call
from esp_gw.desired import GatewaySettings
from esp_gw.errors import EspGwError

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_ESP_GW_COMPLETE"
_TIMEOUT = 1.0
"""Seconds for which a shell waits for names."""

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion for a shell: eval "$(esp-gw completion bash)"."""
    from click import shell_completion as shells  # noqa: PLC0415 - needed by this command alone

    classes: dict[str, type[shells.ShellComplete]] = {
        "bash": shells.BashComplete,
        "zsh": shells.ZshComplete,
        "fish": shells.FishComplete,
    }
    made = classes[shell](context.find_root().command, {}, "esp-gw", _VARIABLE)
    # bash's own method runs a bash to learn its version.
    click.echo(shells.ShellComplete.source(made))


def _names(method: str, member: str) -> Complete:
    """Return a completion from the names of a reply; none without a gateway that answers."""

    def complete(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
        given = context.find_root().params.get("socket")
        path = Path(given or GatewaySettings().control_socket)
        try:
            reply: dict[str, Any] = call(path, method, {}, _TIMEOUT)
            names = [str(each["name"]) for each in reply[member]]
        except (EspGwError, KeyError, TypeError):
            return []
        return [name for name in names if name.startswith(typed)]

    return complete


sa_names = _names("ListSas", "sas")
tunnel_names = _names("ListTunnels", "tunnels")
policy_names = _names("ListPolicies", "policies")
