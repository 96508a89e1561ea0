"""`scripts/iperf3-two-pis`: iperf3 between two machines, outside their tunnel and through it."""

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
    help="Addresses inside the tunnel. [default: queried from esp-gw there]",
)
@click.option(
    "--outer",
    nargs=2,
    metavar="ADDR_A ADDR_B",
    help="Addresses outside the tunnel. [default: queried from esp-gw there]",
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
    """Measure between two machines reachable by ssh, with and without their tunnel.

    Runs TCP, then UDP at the rate that TCP reached, in both directions, and reads each board's
    temperature, clock and throttling before and after. HOST_A and HOST_B are destinations for
    'ssh HOST'. The machines need only iperf3.
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
