"""`esp-gw init --ike`: configurations for strongSwan's charon beside those of the gateways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from esp_gw.cli.output import word
from esp_gw.config.ike import AUTHORITY, Authentication, IkeTerms, make_ike_pair
from esp_gw.config.offer import End
from esp_gw.desired import Desired
from esp_gw.errors import printable


def write_ike_pair(
    out: Path,
    here: End,
    there: End,
    terms: IkeTerms,
    judge: Callable[[Desired], None] | None,
) -> None:
    """Write the folders of both ends, and print what to type on each. Raises EspGwError."""
    pair = make_ike_pair(out, here, there, terms, judge)
    has_certificates = terms.authentication is Authentication.CERTIFICATES
    secret = "its private key in swanctl/private" if has_certificates else "the shared secret"
    for path in (pair.local, pair.remote):
        folder = path.parent
        click.echo(printable(f"wrote {path}, and for charon {folder / 'swanctl'} with {secret}"))
    if has_certificates:
        click.echo(
            printable(f"wrote {out / AUTHORITY}: the CA, whose private key no gateway needs")
        )
    for path, side in ((pair.local, here), (pair.remote, there)):
        folder = path.parent
        click.echo(f"\nCopy the folder {word(folder)} to {side.outer} and run there:")
        for command in _commands(word(folder.name)):
            click.echo(f"  {command}")
    click.echo(
        "\nThe first packet starts the tunnel; 'sudo esp-gw status' shows it."
        "\nThe folders hold secrets: delete all copies outside /etc/esp-gw and /etc/swanctl "
        "afterwards."
    )
    if has_certificates:
        click.echo(
            printable(
                f"Keep {out / AUTHORITY} in a safe place: it makes the certificates of further "
                "ends, and new ones when these expire after five years."
            )
        )


def _commands(folder: str) -> list[str]:
    return [
        "sudo ./scripts/install-ike       # in a checkout, once: charon and its plugin",
        f"sudo cp {folder}/gateway.yaml /etc/esp-gw",
        "sudo chown -R esp-gw: /etc/esp-gw",
        "sudo esp-gw ledger create",
        f"sudo cp -r {folder}/swanctl/. /etc/swanctl",
        "sudo systemctl enable --now esp-gw strongswan",
        "sudo swanctl --load-all",
    ]
