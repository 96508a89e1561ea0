"""`esp-gw doctor`: diagnosis of this machine, without changing it."""

from __future__ import annotations

from pathlib import Path

import click

from esp_gw.cli import output
from esp_gw.cli.options import Daemon, config_option, json_option


@click.command()
@config_option
@json_option
@click.pass_obj
def doctor(daemon: Daemon, config: Path, as_json: bool) -> int:
    """Check for problems that keep the gateway from working here, or from working well.

    It doesn't need a running gateway. It finds most as root. The exit status is 1 if there is a
    fault.
    """
    from esp_gw.cli.diagnosis import examine  # noqa: PLC0415 - imports nearly everything
    from esp_gw.cli.finding import State  # noqa: PLC0415

    findings = examine(config, daemon.socket)
    faults, warnings = (
        sum(finding.state is state for finding in findings)
        for state in (State.FAULT, State.WARNING)
    )
    if as_json:
        output.print_json(
            {
                "faults": faults,
                "warnings": warnings,
                "findings": [
                    {
                        "state": finding.state,
                        "what": finding.what,
                        "found": finding.found,
                        "todo": finding.todo,
                    }
                    for finding in findings
                ],
            }
        )
    else:
        for finding in findings:
            text = f"{finding.found}; {finding.todo}" if finding.todo else finding.found
            # The head keeps its padding between the columns.
            output.print_text(text, f"{finding.state:8} {finding.what:13} ", hanging=" " * 23)
        click.echo(f"{output.counted(faults, 'fault')}, {output.counted(warnings, 'warning')}")
    return 1 if faults else 0
