"""Matching configurations for both ends of a tunnel, with fresh keys and SPIs: `esp-gw init`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from esp_gw.config.load import load_config
from esp_gw.config.offer import (
    LIVENESS,
    End,
    Offer,
    Terms,
    draw,
    write_folder,
)
from esp_gw.config.pair import Pair, check_names, written_whole
from esp_gw.desired import Desired
from esp_gw.model import DEFAULT_SUITE, Encapsulation, IPAddress, IPNetwork, Mode, Suite

DEFAULT_NAMES = ("pi-a", "pi-b")


def make_pair(
    output: Path,
    *,
    local: IPAddress,
    remote: IPAddress,
    local_nets: Sequence[IPNetwork] = (),
    remote_nets: Sequence[IPNetwork] = (),
    names: tuple[str, str] = DEFAULT_NAMES,
    mode: Mode = Mode.TUNNEL,
    encapsulation: Encapsulation = Encapsulation.UDP,
    suite: Suite = DEFAULT_SUITE,
    sas: int = 1,
    liveness: int = LIVENESS,
    local_address: IPAddress | None = None,
    remote_address: IPAddress | None = None,
    local_settings: Mapping[str, object] | None = None,
    remote_settings: Mapping[str, object] | None = None,
    own: Collection[IPAddress] = (),
    routers: Collection[IPAddress] = (),
    written_local: str | None = None,
    judge: Callable[[Desired], None] | None = None,
) -> Pair:
    """Write OUTPUT/NAME/gateway.yaml and OUTPUT/NAME/keys/*.key for both sides of a tunnel.

    `local` and `remote` are outer addresses; `sas` is the number of SAs in each direction,
    `liveness` the interval of authentic keepalives in seconds, 0 for none. The inner address of a
    gateway defaults to the first host of its first prefix in each family. There is none for a
    prefix that is everything, and where the machine has an address inside already: its outer one,
    or one of its `own`. None is taken from its `routers`. Both are those of the local side, whose
    own file has `written_local`, such as `auto`, instead of an address that changes. The settings
    are further fields of the `gateway` section of a side. Folders have mode 0700 and files 0600.
    Raises EspGwError, also if a target exists already or `judge` refuses the local side;
    everything created so far is then removed.
    """
    check_names(*names)
    ours = End(
        names[0],
        local,
        tuple(local_nets),
        local_address,
        local_settings or {},
        own,
        routers,
        written_local,
    )
    theirs = End(names[1], remote, tuple(remote_nets), remote_address, remote_settings or {})
    offer = draw(ours, theirs, Terms(mode, encapsulation, suite, sas, liveness))
    with written_whole(output) as undo:
        pair = Pair(*(_write_end(output, each, undo) for each in (offer, offer.turned)))
        if judge is not None:
            judge(load_config(pair.local))
    return pair


def _write_end(output: Path, offer: Offer, undo: contextlib.ExitStack) -> Path:
    """Create and load one end's folder. Raises OSError, KeyFileError and ConfigError."""
    path = write_folder(output / offer.here.name, offer, undo)
    load_config(path)
    return path
