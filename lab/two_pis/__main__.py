"""`scripts/iperf3-two-pis`: iperf3 between two machines, beside their tunnel and through it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from esp_gw.errors import LabError
from lab.program import run_command_line
from lab.two_pis.measure import Options, measure
from lab.two_pis.report import table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds",
    type=click.IntRange(1, 3600),
    default=10,
    show_default=True,
    help="Length of each of the eight runs.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=5201, show_default=True)
@click.option(
    "--inner",
    nargs=2,
    metavar="ADDR_A ADDR_B",
    help="The machines' addresses in the tunnel. [default: esp-gw there is asked]",
)
@click.option(
    "--outer",
    nargs=2,
    metavar="ADDR_A ADDR_B",
    help="Their addresses beside it. [default: likewise]",
)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON document.")
@click.argument("host_a")
@click.argument("host_b")
def two_pis(
    host_a: str,
    host_b: str,
    seconds: int,
    port: int,
    inner: tuple[str, str] | None,
    outer: tuple[str, str] | None,
    json_output: bool,
) -> int:
    """Measure between two machines that ssh reaches, with and without the tunnel they have.

    TCP, and UDP at the rate that TCP had, both directions; before and after, each board's
    temperature, clock and throttling. HOST_A and HOST_B are what 'ssh HOST'
    takes. Nothing but iperf3 is needed there.
    """
    options = Options(seconds, port, inner or None, outer or None)
    report = measure((host_a, host_b), options, _say)
    click.echo(json.dumps(asdict(report), indent=2) if json_output else table(report))
    return 0


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line and return the exit status."""
    try:
        return run_command_line(two_pis, "scripts/iperf3-two-pis")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
