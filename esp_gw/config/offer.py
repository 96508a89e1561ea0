"""A tunnel as its two ends agree on it: parameters, SPIs and keys, and the files of one end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.config.keyfile import generate, write_key_file
from esp_gw.files import write_new
from esp_gw.model import Encapsulation, IPAddress, IPNetwork, KeyMaterial, Mode, Suite
from esp_gw.protocol import MAX_SPI, MIN_SPI

LIVENESS = 10
"""Seconds between the authentic keepalives of a pair: both ends are esp_gw, which knows them."""
_PLAIN_SCALAR = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*")


@dataclass(frozen=True, slots=True)
class End:
    """One end: its outer address or name, the networks behind it, its inner address, its settings.

    `own` are further addresses of the machine, `routers` its default gateways, as far as known.
    `written` stands in its own configuration instead of the outer address.
    """

    name: str
    outer: IPAddress | str
    nets: tuple[IPNetwork, ...] = ()
    address: IPAddress | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    own: Collection[IPAddress] = ()
    routers: Collection[IPAddress] = ()
    written: IPAddress | str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """Parameters that both ends share. `liveness` is in seconds, 0 for none."""

    mode: Mode
    encapsulation: Encapsulation
    suite: Suite
    sas: int
    liveness: int = LIVENESS


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of the tunnel: the first SPI, and a key for each SA."""

    spi: int
    keymats: tuple[KeyMaterial, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A tunnel as the end `here` has it."""

    here: End
    there: End
    terms: Terms
    outbound: Way
    inbound: Way

    @property
    def turned(self) -> Offer:
        """The tunnel as the other end has it."""
        return Offer(self.there, self.here, self.terms, self.inbound, self.outbound)


def draw(here: End, there: End, terms: Terms) -> Offer:
    """Return a tunnel with fresh keys and SPIs."""
    outbound, inbound = (
        Way(spi, tuple(generate(terms.suite) for _ in range(terms.sas)))
        for spi in _random_spis(terms.sas)
    )
    return Offer(here, there, terms, outbound, inbound)


def make_folder(folder: Path, undo: contextlib.ExitStack) -> list[Path]:
    """Create a folder and its parents with mode 0700 where they are missing; return those.

    Raises OSError.
    """
    made = []
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            try:
                each.mkdir(mode=0o700)
            except FileExistsError:
                text = os.strerror(errno.ENOTDIR)
                raise NotADirectoryError(errno.ENOTDIR, text, str(each)) from None
            undo.callback(_remove_if_empty, each)
            made.append(each)
    return made


def new_folder(folder: Path, undo: contextlib.ExitStack) -> None:
    """Create a folder with mode 0700. Raises OSError."""
    folder.mkdir(mode=0o700)
    undo.callback(shutil.rmtree, folder, ignore_errors=True)


def key_paths(folder: Path, there: str) -> tuple[Path, Path]:
    """Return the key files for the other end in a folder: outbound, inbound."""
    return folder / f"{there}.out.key", folder / f"{there}.in.key"


def write_keys(folder: Path, offer: Offer, undo: contextlib.ExitStack) -> list[Path]:
    """Write the two key files of the end `here` into a folder. Raises KeyFileError."""
    here, there = offer.here.name, offer.there.name
    outbound, inbound = key_paths(folder, there)
    paths = []
    for way, path, ends in (
        (offer.outbound, outbound, f"{here} to {there}"),
        (offer.inbound, inbound, f"{there} to {here}"),
    ):
        comment = f"Key and salt for {ends}, {offer.terms.suite}: a secret of these two gateways."
        write_key_file(path, way.keymats, comment)
        undo.callback(path.unlink, missing_ok=True)
        paths.append(path)
    return paths


def write_folder(folder: Path, offer: Offer, undo: contextlib.ExitStack) -> Path:
    """Create a folder with gateway.yaml and keys/ of the end `here`; return the file's path.

    Raises OSError, KeyFileError.
    """
    new_folder(folder, undo)
    (folder / "keys").mkdir(mode=0o700)
    write_keys(folder / "keys", offer, undo)
    path = folder / "gateway.yaml"
    write_new(path, config_text(offer).encode())
    return path


def config_text(offer: Offer) -> str:
    """Return the whole configuration of the end `here`."""
    here, there = offer.here, offer.there
    lines = [
        f"# The gateway {here.name}; the other one is {there.name}.",
        "# The two files in keys/ are secret, and the other gateway has the same two keys.",
    ]
    lines += gateway_lines(here, offer.terms.mode)
    return "\n".join(lines) + "\n" + tunnel_text(offer)


def gateway_lines(end: End, mode: Mode, defaults: Mapping[str, object] | None = None) -> list[str]:
    """Return the section `gateway` of an end, with a note for each address that is left out."""
    addresses, notes = _addresses(end, mode)
    lines = [f"# {note}" for note in notes]
    there = {"address": addresses} if addresses else {}
    if gateway := {**(defaults or {}), **there, **end.settings}:
        lines.append("gateway:")
        lines += [f"  {name}: {_scalar(value)}" for name, value in gateway.items()]
    return lines


def tunnel_text(offer: Offer) -> str:
    """Return the section `tunnels` of the end `here`."""
    here, there, terms = offer.here, offer.there, offer.terms
    lines = [
        "tunnels:",
        f"  {_scalar(there.name)}:",
        f"    mode: {terms.mode}",
        f"    encapsulation: {terms.encapsulation}",
        "    # Where the two gateways reach each other.",
        f"    local: {_scalar(here.written or here.outer)}",
    ]
    if there.written is not None:
        lines.append(f"    # At first: in UDP {there.name} is followed to each new address.")
    lines.append(f"    remote: {_scalar(there.outer)}")
    if here.nets or there.nets:
        lines += [
            "    # The networks behind this gateway and behind the other one.",
            f"    local_ts: {_scalar(here.nets)}",
            f"    remote_ts: {_scalar(there.nets)}",
        ]
    lines += [
        f"    suite: {terms.suite}",
    ]
    if terms.liveness:
        lines += [
            "    # Seconds in which an idle end tells the other that it lives.",
            f"    liveness: {terms.liveness}",
        ]
    if terms.sas > 1:
        lines += [
            "    # As many SAs each way, and as many lanes; each SPI is one more than the last.",
            f"    sas: {terms.sas}",
        ]
    out, back = f"{offer.outbound.spi:#x}", f"{offer.inbound.spi:#x}"
    lines += [
        f"    # What is outbound here is inbound on {there.name}.",
        f"    outbound: {{spi: {out}, key: {{file: keys/{there.name}.out.key}}}}",
        f"    inbound: {{spi: {back}, key: {{file: keys/{there.name}.in.key}}}}",
    ]
    return "\n".join(lines) + "\n"


def _random_spis(sas: int) -> tuple[int, int]:
    """The first SPI of each direction; the two ranges of SPIs do not overlap."""
    while True:
        one, other = (MIN_SPI + secrets.randbelow(MAX_SPI - MIN_SPI - sas + 2) for _ in range(2))
        if abs(one - other) >= sas:
            return one, other


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _addresses(side: End, mode: Mode) -> tuple[list[IPAddress], list[str]]:
    """Return the addresses that a side's TUN gets, and a note for each that is left out."""
    if side.address is not None:
        return [side.address], []
    addresses: list[IPAddress] = []
    notes: list[str] = []
    # In a prefix of length 0 any address will do.
    nets = [net for net in side.nets if net.prefixlen]
    for version in sorted({net.version for net in nets} if mode is Mode.TUNNEL else ()):
        first = next(net for net in nets if net.version == version)
        there = _inside(nets, version, side)
        # Not the number of the network itself, unless it has one or two hosts (RFC 3021).
        address = first[0] if first.num_addresses <= 2 else first[1]
        if there is not None:
            notes.append(f"No address is added: {there} of this machine is in its own prefix.")
        elif address in side.routers:
            notes.append(f"No address is added: {address} of {first} is the default gateway.")
        else:
            addresses.append(address)
    return addresses, notes


def _inside(nets: Sequence[IPNetwork], version: int, side: End) -> IPAddress | None:
    """Return an address of the machine inside one of its prefixes of this IP version, or None."""
    usable = (each for each in side.own if not (each.is_link_local or each.is_loopback))
    outer = [] if isinstance(side.outer, str) else [side.outer]
    known = [*outer, *sorted((each for each in usable if each.version == version), key=int)]
    return next(
        (each for each in known if each.version == version and any(each in net for net in nets)),
        None,
    )


def _scalar(value: object) -> str:
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_scalar(entry)}' for name, entry in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_scalar, value))}]"
    text = str(value)
    if _PLAIN_SCALAR.fullmatch(text) and text.lower() != "null":
        return text
    return json.dumps(text, ensure_ascii=False)
