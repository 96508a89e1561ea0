"""Matching configurations of charon and the gateway for both ends of a tunnel whose keys IKE makes.

`esp-gw init --ike` writes them. The words are those of swanctl.conf(5).
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from esp_gw.config.authority import CA_CERTIFICATE, issue, make_authority
from esp_gw.config.load import load_config
from esp_gw.config.offer import End, gateway_lines, new_folder
from esp_gw.config.pair import Pair, check_names, written_whole
from esp_gw.config.types import selectors_of
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import EspGwError
from esp_gw.files import write_new
from esp_gw.model import DEFAULT_SUITE, Action, Encapsulation, Mode, Origin, Policy, Suite

AUTHORITY = "ca"
"""Folder of the CA, beside those of the two ends."""
IKE_PROPOSAL = "aes256gcm16-prfsha256-x25519"
POST_QUANTUM = "ke1_mlkem768"
SECRET_LEN = 32
DPD_DELAY = 30
"""Seconds of silence after which a peer is asked if it is there."""


class Authentication(enum.StrEnum):
    """Means of authentication of the two ends."""

    PSK = "psk"
    CERTIFICATES = "pubkey"


@dataclass(frozen=True, slots=True)
class IkeTerms:
    """Parameters that both ends share."""

    mode: Mode = Mode.TUNNEL
    encapsulation: Encapsulation = Encapsulation.UDP
    suite: Suite = DEFAULT_SUITE
    authentication: Authentication = Authentication.PSK


def make_ike_pair(
    output: Path,
    here: End,
    there: End,
    terms: IkeTerms,
    judge: Callable[[Desired], None] | None = None,
) -> Pair:
    """Write OUTPUT/NAME/gateway.yaml and OUTPUT/NAME/swanctl/ for both sides of a tunnel.

    With certificates also OUTPUT/ca, whose private key neither side needs. Folders have mode 0700
    and files 0600. Raises EspGwError, also if a target exists already or `judge` refuses the local
    side with its child; everything created so far is then removed.
    """
    check_names(here.name, there.name)
    _check(here, there, terms)
    secret = secrets.token_hex(SECRET_LEN)
    with written_whole(output) as undo:
        pair = Pair(
            _write_side(output, here, there, terms, undo),
            _write_side(output, there, here, terms, undo),
        )
        if terms.authentication is Authentication.CERTIFICATES:
            _write_certificates(output, here, there, undo)
        else:
            for ours, theirs in ((here, there), (there, here)):
                path = _conf_d(output, ours) / f"{theirs.name}.secrets.conf"
                write_new(path, _secrets_text(ours, theirs, secret).encode())
        if judge is not None:
            judge(_with_child(load_config(pair.local), here, there))
    return pair


def section(name: str) -> str:
    """Return a name as that of a section: there a dot would divide it."""
    return name.replace(".", "-")


def _check(here: End, there: End, terms: IkeTerms) -> None:
    """Raise EspGwError for ends that can have no tunnel with each other."""
    if here.outer == there.outer:
        raise EspGwError(f"both sides have the outer address {here.outer}")
    # A name is resolved by charon.
    versions = {end.outer.version for end in (here, there) if not isinstance(end.outer, str)}
    if len(versions) > 1:
        raise EspGwError(f"the outer addresses {here.outer} and {there.outer} are of two families")
    if terms.mode is Mode.TRANSPORT and (here.nets or there.nets):
        raise EspGwError(
            "transport mode protects what the two machines send to each other",
            hint="give no networks, or tunnel mode",
        )
    ours, theirs = ({net.version for net in side.nets} for side in (here, there))
    if ours != theirs:
        raise EspGwError(
            "the networks of the two sides are of different IP versions",
            hint="give both sides a network of each version",
        )
    # 0.0.0.0/0 to 0.0.0.0/0 is allowed: routing decides what reaches the tunnel.
    if same := [net for net in here.nets if net.prefixlen and net in there.nets]:
        raise EspGwError(f"both sides have the network {same[0]}")
    if terms.mode is Mode.TUNNEL and not ours:
        raise EspGwError("tunnel mode joins networks, and there are none")


def _write_side(output: Path, here: End, there: End, terms: IkeTerms, undo: ExitStack) -> Path:
    """Create a side's folder but its secrets, and load the gateway's part.

    Raises OSError and ConfigError.
    """
    folder = output / here.name
    new_folder(folder, undo)
    new_folder(folder / "swanctl", undo)
    new_folder(folder / "swanctl" / "conf.d", undo)
    path = folder / "gateway.yaml"
    write_new(path, _gateway_text(here, there, terms).encode())
    load_config(path)
    text = _connection_text(here, there, terms)
    write_new(_conf_d(output, here) / f"{there.name}.conf", text.encode())
    return path


def _conf_d(output: Path, side: End) -> Path:
    return output / side.name / "swanctl" / "conf.d"


def _write_certificates(output: Path, here: End, there: End, undo: ExitStack) -> None:
    """Make a CA, and give each side its own key and certificate, and the CA's certificate."""
    authority = output / AUTHORITY
    new_folder(authority, undo)
    make_authority(authority, f"CA of {here.name} and {there.name}")
    certificate = (authority / CA_CERTIFICATE).read_bytes()
    for ours, theirs in ((here, there), (there, here)):
        folder = output / ours.name / "swanctl"
        for name in ("private", "x509", "x509ca"):
            new_folder(folder / name, undo)
        key = folder / "private" / f"{_own(ours, theirs)}.key"
        issue(authority, ours.name, key, folder / "x509" / f"{_own(ours, theirs)}.pem")
        write_new(folder / "x509ca" / _ca_file(ours, theirs), certificate)


def _own(here: End, there: End) -> str:
    """Return the name of a side's own files: a machine may have more than one such peer."""
    return f"{here.name}-for-{there.name}"


def _ca_file(here: End, there: End) -> str:
    return f"ca-of-{here.name}-and-{there.name}.pem"


def _gateway_text(here: End, there: End, terms: IkeTerms) -> str:
    settings = GatewaySettings()
    lines = [
        f"# The gateway {here.name}. IKE makes the keys of its tunnel with {there.name}:",
        f"# outer addresses, networks and proposals are in swanctl/conf.d/{there.name}.conf.",
        "# Both IKE and ESP in UDP use `port`.",
        *gateway_lines(here, terms.mode, {"interface": settings.interface, "port": settings.port}),
    ]
    return "\n".join(lines) + "\n"


def _connection_text(here: End, there: End, terms: IkeTerms) -> str:
    peer = section(there.name)
    esp = f"{terms.suite}-x25519"
    lines = [
        f"# The tunnel of {here.name} with {there.name}: 'swanctl --load-all' gives it to charon.",
        "connections {",
        f"  {peer} {{",
        "    version = 2",
        *_addresses(here, there),
        f"    proposals = {IKE_PROPOSAL}",
        "    # Post-quantum key exchange, for a charon from 6.0 on with the plugin ml: this line",
        "    # instead, and the one of the child. The second proposal is for a peer without it.",
        "    # An older charon refuses the word, and the whole connection with it.",
        f"    # proposals = {IKE_PROPOSAL}-{POST_QUANTUM}, {IKE_PROPOSAL}",
    ]
    if terms.encapsulation is Encapsulation.UDP:
        lines += ["    # ESP in UDP, also where no NAT is between the ends.", "    encap = yes"]
    lines += [
        f"    dpd_delay = {DPD_DELAY}s",
        *_auth_lines("local", here, there, terms),
        *_auth_lines("remote", there, here, terms),
        "    children {",
        f"      {peer} {{",
        f"        mode = {terms.mode}",
    ]
    if terms.mode is Mode.TUNNEL:
        lines += [
            f"        local_ts = {_listed(here.nets)}",
            f"        remote_ts = {_listed(there.nets)}",
        ]
    lines += [
        f"        esp_proposals = {esp}-esn",
        f"        # esp_proposals = {esp}-{POST_QUANTUM}-esn, {esp}-esn",
        "        # The first packet brings the child. What it protects stays closed when it ends.",
        "        start_action = trap",
        "        dpd_action = trap",
        "      }",
        "    }",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _addresses(here: End, there: End) -> Sequence[str]:
    """Return the outer addresses; an end whose address changes may come from anywhere."""
    lines = []
    if here.written is None:
        lines.append(f"    local_addrs = {here.outer}")
    if there.written is None:
        return [*lines, f"    remote_addrs = {there.outer}"]
    return [
        *lines,
        f"    # {there.name} has this address at first, and may come from any other.",
        f"    remote_addrs = {there.outer}, %any",
    ]


def _auth_lines(place: str, side: End, other: End, terms: IkeTerms) -> Sequence[str]:
    """Return the section of an end: how it is known, and by which name."""
    lines = [f"    {place} {{", f"      auth = {terms.authentication}"]
    if terms.authentication is Authentication.CERTIFICATES:
        if place == "local":
            lines.append(f"      certs = {_own(side, other)}.pem")
        else:
            lines.append(f"      cacerts = {_ca_file(other, side)}")
    return [*lines, f"      id = @{side.name}", "    }"]


def _secrets_text(here: End, there: End, secret: str) -> str:
    lines = [
        f"# The secret of {here.name} and {there.name}, the same at both.",
        "secrets {",
        f"  ike-{section(there.name)} {{",
        f"    id-1 = @{here.name}",
        f"    id-2 = @{there.name}",
        f"    secret = 0x{secret}",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _with_child(desired: Desired, here: End, there: End) -> Desired:
    """Return a state with the policy that charon will have installed."""
    pairs = selectors_of(here.nets, there.nets, None, None, None)
    policy = Policy(there.name, Action.PROTECT, pairs, origin=Origin.IKE)
    return replace(desired, policies=(*desired.policies, policy)) if pairs else desired
