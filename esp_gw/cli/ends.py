"""One end of a tunnel on this machine: its files, its ledger, and what to type next."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from esp_gw.cli.here import judge, look
from esp_gw.cli.ledger import make_ledger
from esp_gw.config.invitation import read_invitation
from esp_gw.config.joining import Added, add_end
from esp_gw.config.load import load_state_dir
from esp_gw.config.offer import Offer
from esp_gw.desired import GatewaySettings
from esp_gw.errors import printable
from esp_gw.ledger.ledger import LEDGER_NAME
from esp_gw.model import AUTO

SERVICE_USER = "esp-gw"


def take(text: str, passphrase: str | None, config: Path, force: bool) -> Added:
    """Add the tunnel of an invitation. Raises EspGwError."""
    offer = read_invitation(text, datetime.now(UTC), passphrase)
    return add(config, replace(offer, here=replace(offer.here, written=AUTO)), force)


def add(config: Path, offer: Offer, force: bool) -> Added:
    """Write the tunnel, and a ledger for a machine that had neither it nor a configuration."""
    found = look(GatewaySettings())
    settings: dict[str, object] = {"allow_cut_off": True} if force else {}
    ours = replace(
        offer.here, own=found.host.addresses, routers=found.host.routers, settings=settings
    )
    added = add_end(config, replace(offer, here=ours), _owner(), partial(judge, found, force))
    folder = load_state_dir(config)
    # The only keys are fresh.
    if added.is_first and not os.path.lexists(folder / LEDGER_NAME):
        make_ledger(folder)
    return added


def tell(added: Added) -> None:
    """Say on stderr what was written, and what to type next."""
    click.echo(printable(f"wrote {added.file} and the keys in {added.keys[0].parent}"), err=True)
    step = "sudo systemctl enable --now esp-gw" if added.is_first else "sudo esp-gw reload"
    click.echo(f"here:  {step}", err=True)


def _owner() -> tuple[int, int] | None:
    """Return user and group of the service, for what root writes; None where there is none."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid
