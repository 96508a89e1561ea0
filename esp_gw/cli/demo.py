"""`esp-gw demo`: two gateways on this machine, and traffic through them."""

from __future__ import annotations

import click

from esp_gw.cli.options import (
    ENCAPSULATION,
    ENGINE,
    MODE,
    SECONDS,
    SUITE,
    json_option,
)
from esp_gw.model import DEFAULT_SUITE, SUITES, Encapsulation, Mode


@click.command()
@click.option(
    "--engine",
    type=ENGINE,
    default="auto",
    show_default=True,
)
@click.option("--mode", type=MODE, default="tunnel", show_default=True)
@click.option(
    "--encapsulation",
    type=ENCAPSULATION,
    default="udp",
    show_default=True,
)
@click.option(
    "--suite",
    type=SUITE,
    default=DEFAULT_SUITE.name,
    show_default=True,
    metavar="NAME",
    help=f"One of {', '.join(SUITES)}.",
)
@click.option(
    "--seconds",
    type=SECONDS,
    default=5,
    show_default=True,
    metavar="N",
    help="Length of the throughput test.",
)
@json_option
def demo(
    engine: str, mode: str, encapsulation: str, suite: str, seconds: int, as_json: bool
) -> int:
    """Run a tunnel between two network namespaces on this machine and verify it. Needs root."""
    from esp_gw.demo import run as demo_run  # noqa: PLC0415 - imports the daemon's libraries

    return demo_run.run(
        demo_run.DemoOptions(
            engine=engine,
            mode=Mode(mode),
            encapsulation=Encapsulation(encapsulation),
            suite=SUITES[suite],
            seconds=seconds,
            json_output=as_json,
        )
    )
