"""Matching configurations for both ends of a tunnel, with fresh keys and SPIs: `esp-gw init`."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from esp_gw.config.keyfile import generate, write_key_file
from esp_gw.config.load import load_config
from esp_gw.desired import Desired
from esp_gw.errors import ConfigError, EspGwError, printable
from esp_gw.files import sync_folder, write_new
from esp_gw.model import (
    DEFAULT_SUITE,
    Encapsulation,
    IPAddress,
    IPNetwork,
    KeyMaterial,
    Mode,
    Suite,
)
from esp_gw.protocol import MAX_SPI, MIN_SPI
from esp_gw.values import FieldError, parse_name

DEFAULT_NAMES = ("pi-a", "pi-b")
LIVENESS = 10
"""Seconds between the authentic keepalives of a pair: both ends are esp_gw, which knows them."""
_PLAIN_SCALAR = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*")


@dataclass(frozen=True, slots=True)
class Pair:
    """Paths of the gateway.yaml of both sides."""

    local: Path
    remote: Path


@dataclass(frozen=True, slots=True)
class _Side:
    """One end: its outer address, the networks behind it, its inner address, its settings.

    `own` are further addresses of the machine, `routers` its default gateways, as far as known.
    `written` stands in its own configuration instead of the outer address.
    """

    name: str
    outer: IPAddress
    nets: tuple[IPNetwork, ...]
    address: IPAddress | None
    settings: Mapping[str, object]
    own: Collection[IPAddress] = ()
    routers: Collection[IPAddress] = ()
    written: str | None = None


@dataclass(frozen=True, slots=True)
class _Terms:
    """Parameters that both ends share."""

    mode: Mode
    encapsulation: Encapsulation
    suite: Suite
    sas: int
    liveness: int


@dataclass(frozen=True, slots=True)
class _Way:
    """One direction of the tunnel: the first SPI, and a key for each SA."""

    name: str
    spi: int
    keymats: tuple[KeyMaterial, ...]


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
    if names[0] == names[1]:
        raise EspGwError(f"both sides have the name {printable(names[0])}", hint="choose two names")
    for name in names:
        try:
            parse_name(name)
        except FieldError as error:
            raise EspGwError(str(error), where=f"name {printable(name)}") from None
    ours = _Side(
        names[0],
        local,
        tuple(local_nets),
        local_address,
        local_settings or {},
        own,
        routers,
        written_local,
    )
    theirs = _Side(names[1], remote, tuple(remote_nets), remote_address, remote_settings or {})
    terms = _Terms(mode, encapsulation, suite, sas, liveness)
    spis = _random_spis(sas)
    there, back = (
        _Way(name, spi, tuple(generate(suite) for _ in range(sas)))
        for name, spi in zip(
            (f"{ours.name} to {theirs.name}", f"{theirs.name} to {ours.name}"), spis, strict=True
        )
    )
    with contextlib.ExitStack() as undo:
        try:
            _make_output(output, undo)
            pair = Pair(
                _write_side(output, ours, theirs, terms, there, back, undo),
                _write_side(output, theirs, ours, terms, back, there, undo),
            )
            sync_folder(output)
            if judge is not None:
                judge(load_config(pair.local))
        except ConfigError as error:
            problem = error.problems[0]
            raise EspGwError(f"{problem.field}: {problem.message}") from None
        except FileExistsError as error:
            raise EspGwError(
                "exists already and is not overwritten",
                where=printable(error.filename),
                hint="choose another folder or name, or move it away",
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is not a usable folder name"
            raise EspGwError(reason, where=printable(output)) from None
        undo.pop_all()
    return pair


def example() -> str:
    """A configuration as `esp-gw init` writes it, with addresses of RFC 5737."""
    here, there = (
        _Side(name, ip_address(f"192.0.2.{end}"), (ip_network(f"10.{end}.0.0/24"),), None, {})
        for end, name in enumerate(DEFAULT_NAMES, 1)
    )
    terms = _Terms(Mode.TUNNEL, Encapsulation.UDP, DEFAULT_SUITE, 1, LIVENESS)
    return _config_text(here, there, terms, _Way("", 0x1001, ()), _Way("", 0x1002, ()))


def _random_spis(sas: int) -> tuple[int, int]:
    """The first SPI of each direction; the two ranges of SPIs do not overlap."""
    while True:
        one, other = (MIN_SPI + secrets.randbelow(MAX_SPI - MIN_SPI - sas + 2) for _ in range(2))
        if abs(one - other) >= sas:
            return one, other


def _make_output(output: Path, undo: contextlib.ExitStack) -> None:
    for folder in (*reversed(output.parents), output):
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
            undo.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _write_side(
    output: Path,
    here: _Side,
    there: _Side,
    terms: _Terms,
    outbound: _Way,
    inbound: _Way,
    undo: contextlib.ExitStack,
) -> Path:
    """Create and load one side's folder. Raises OSError, KeyFileError and ConfigError."""
    folder = output / here.name
    folder.mkdir(mode=0o700)
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    (folder / "keys").mkdir(mode=0o700)
    for end, way in (("out", outbound), ("in", inbound)):
        comment = f"Key and salt for {way.name}, {terms.suite}: a secret of these two gateways."
        write_key_file(folder / "keys" / f"{there.name}.{end}.key", way.keymats, comment)
    path = folder / "gateway.yaml"
    write_new(path, _config_text(here, there, terms, outbound, inbound).encode())
    load_config(path)
    return path


def _config_text(here: _Side, there: _Side, terms: _Terms, outbound: _Way, inbound: _Way) -> str:
    lines = [
        f"# The gateway {here.name}; the other one is {there.name}.",
        "# The two files in keys/ are secret, and the other gateway has the same two keys.",
    ]
    addresses, notes = _addresses(here, terms)
    lines += [f"# {note}" for note in notes]
    if gateway := {**({"address": addresses} if addresses else {}), **here.settings}:
        lines.append("gateway:")
        lines += [f"  {name}: {_scalar(value)}" for name, value in gateway.items()]
    lines += [
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
    lines += [
        f"    # What is outbound here is inbound on {there.name}.",
        f"    outbound: {{spi: {outbound.spi:#x}, key: {{file: keys/{there.name}.out.key}}}}",
        f"    inbound: {{spi: {inbound.spi:#x}, key: {{file: keys/{there.name}.in.key}}}}",
    ]
    return "\n".join(lines) + "\n"


def _addresses(side: _Side, terms: _Terms) -> tuple[list[IPAddress], list[str]]:
    """Return the addresses that a side's TUN gets, and a note for each that is left out."""
    if side.address is not None:
        return [side.address], []
    addresses: list[IPAddress] = []
    notes: list[str] = []
    # In a prefix of length 0 any address will do.
    nets = [net for net in side.nets if net.prefixlen]
    for version in sorted({net.version for net in nets} if terms.mode is Mode.TUNNEL else ()):
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


def _inside(nets: Sequence[IPNetwork], version: int, side: _Side) -> IPAddress | None:
    """Return an address of the machine inside one of its prefixes of this IP version, or None."""
    usable = (each for each in side.own if not (each.is_link_local or each.is_loopback))
    known = [side.outer, *sorted((each for each in usable if each.version == version), key=int)]
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
