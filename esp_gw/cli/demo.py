"""`esp-gw demo`: two gateways on this machine, and traffic through them."""

from __future__ import annotations

from pathlib import Path

import click

from esp_gw.cli.options import (
    ENCAPSULATION,
    ENGINE,
    FILE,
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
@click.option(
    "--ike",
    is_flag=True,
    help="Let strongSwan's charon find the keys, and rekey under load.",
)
@click.option(
    "--plugin",
    type=FILE,
    default=None,
    show_default="the installed one",
    metavar="FILE",
    help="With --ike: charon's plugin kernel-esp-gw.",
)
@json_option
def demo(
    engine: str,
    mode: str,
    encapsulation: str,
    suite: str,
    seconds: int,
    ike: bool,
    plugin: Path | None,
    as_json: bool,
) -> int:
    """Run a tunnel between two network namespaces on this machine and verify it. Needs root."""
    if plugin is not None and not ike:
        raise click.UsageError("--plugin needs --ike: manual keys have no charon")
    from esp_gw.demo import run as demo_run  # noqa: PLC0415 - imports the daemon's libraries
    from esp_gw.demo.steps import DemoOptions  # noqa: PLC0415 - likewise

    run = demo_run.run_ike if ike else demo_run.run
    return run(
        DemoOptions(
            engine=engine,
            mode=Mode(mode),
            encapsulation=Encapsulation(encapsulation),
            suite=SUITES[suite],
            seconds=seconds,
            json_output=as_json,
            plugin=plugin,
        )
    )
