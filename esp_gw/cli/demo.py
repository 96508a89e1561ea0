"""`esp-gw demo`: two gateways on this machine, and traffic through them."""

from __future__ import annotations

import click

from esp_gw.cli.options import SUITE, json_option
from esp_gw.model import DEFAULT_SUITE, SUITES, Encapsulation, Mode


@click.command()
@click.option(
    "--engine",
    type=click.Choice(["auto", "python", "native"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--mode", type=click.Choice([word.value for word in Mode]), default="tunnel", show_default=True
)
@click.option(
    "--encapsulation",
    type=click.Choice([word.value for word in Encapsulation]),
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
    type=click.IntRange(1, 3600),
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
    from esp_gw.demo import run as lab_demo  # noqa: PLC0415 - imports the daemon's libraries

    return lab_demo.run(
        lab_demo.DemoOptions(
            engine=engine,
            mode=Mode(mode),
            encapsulation=Encapsulation(encapsulation),
            suite=SUITES[suite],
            seconds=seconds,
            json_output=as_json,
        )
    )
