"""`esp-gw bench`: measurements of this machine, without a gateway and without root."""

from __future__ import annotations

from collections.abc import Mapping

import click

from esp_gw.cli import output
from esp_gw.cli.options import json_option
from esp_gw.model import AF_ALG

_SUITES = ("aes256gcm16", "aes128gcm16", "chacha20poly1305")


@click.group()
def bench() -> None:
    """Measure the performance of this machine."""


@bench.command()
@json_option
def crypto(as_json: bool) -> None:
    """Measure the suites and recommend one for this machine. Takes a few seconds at most."""
    # Only measuring needs them, and they import cryptography.
    from esp_gw.crypto import measure, probe, recommend  # noqa: PLC0415
    from esp_gw.crypto.processor import aes_path  # noqa: PLC0415
    from esp_gw.engine.choose import is_native  # noqa: PLC0415

    sealer = measure.Sealer(is_native("auto"))
    faults = {
        (AF_ALG, suite): why for suite, why in probe.find_faults().items() if suite in _SUITES
    }
    ways = [(provider, suite) for suite in _SUITES for provider in sealer.providers]
    cells = measure.cells(way for way in ways if way not in faults)
    found = measure.measure_cells(sealer.measure(), cells, measure.THOROUGH)
    found.missing.update(faults)
    libraries = {suite: sealer.provider_of(suite) for suite in _SUITES}
    in_kernel = [
        suite
        for suite, library in libraries.items()
        if probe.compared(found, library, suite).in_use
    ]
    chosen = libraries | dict.fromkeys(in_kernel, AF_ALG)
    figures = measure.by_suite(found, [(provider, suite) for suite, provider in chosen.items()])
    suite = recommend.recommended(figures)
    why = f"{recommend.reason(figures, aes_path())} {recommend.peers(suite)}"
    if as_json:
        output.print_json(
            {
                "engine": sealer.engine,
                "aes": aes_path(),
                "figures": [
                    {"provider": provider, "suite": suite, "size": size, "ns": round(ns, 1)}
                    for (provider, suite, size), ns in found.ns.items()
                ],
                "missing": [
                    {"provider": provider, "suite": suite, "why": text}
                    for (provider, suite), text in found.missing.items()
                ],
                "recommended": suite,
                "why": why,
            }
        )
        return
    click.echo(f"{sealer.engine} engine: nanoseconds to seal a packet, Mbit/s of one processor\n")
    columns = [name for way in sealer.providers for name in (f"{way.upper()} NS", "MBIT/S")]
    output.print_table(
        ("SUITE", "BYTES", *columns),
        [
            (suite, str(size), *_cells(found.ns, sealer.providers, suite, size))
            for suite in _SUITES
            for size in recommend.SIZES
        ],
        none="nothing",
    )
    click.echo()
    for text in _missing(found.missing):
        output.print_text(f"not measured: {text}")
    if in_kernel:
        suites = output.joined(in_kernel)
        output.print_text(f"faster by AF_ALG: {suites} ('crypto.offload: auto' uses it)")
    output.print_text(f"recommended: {suite}. {why}")


def _cells(
    ns: Mapping[tuple[str, str, int], float], providers: tuple[str, ...], suite: str, size: int
) -> list[str]:
    found = [ns.get((provider, suite, size)) for provider in providers]
    return [
        text
        for time in found
        for text in (("", "") if time is None else (f"{time:.0f}", f"{size * 8000 / time:.0f}"))
    ]


def _missing(missing: Mapping[tuple[str, str], str]) -> list[str]:
    """Return a line per provider and reason, with the suites that have no figures."""
    suites: dict[tuple[str, str], list[str]] = {}
    for (provider, suite), why in missing.items():
        suites.setdefault((provider, why), []).append(suite)
    return [
        f"{provider}{'' if len(names) == len(_SUITES) else ' ' + output.joined(names)} ({why})"
        for (provider, why), names in suites.items()
    ]
