"""The kernel's network as one flow meets it: routes both ways, forwarding, packet filters."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esp_gw.errors import NetworkError
from esp_gw.network import dumps
from esp_gw.network.flow import Flow
from esp_gw.network.messages import MessageSocket, refusal
from esp_gw.network.nft import list_ruleset
from esp_gw.network.route_lookup import Way, way_of, way_to

PROC_NET = Path("/proc/sys/net")
_STRICT = 1


@dataclass(frozen=True, slots=True)
class Survey:
    """The network around one flow on the host of a TUN device.

    `to_source` and `to_destination` are the routes to both addresses, `out` is that of the flow as
    it comes from this host or by the interface of `to_source`, `on` that of the flow out of the
    TUN, `back` that of its answers. `unforwarded` are interfaces whose packets are not forwarded,
    `strict` those with a strict reverse path filter. `ruleset` has the entries of all packet
    filters, and `unseen` the reason if they can't be looked at. The destination `is_near` if this
    host is connected to its network.
    """

    to_source: Way
    to_destination: Way
    out: Way = field(default_factory=Way)
    on: Way = field(default_factory=Way)
    back: Way = field(default_factory=Way)
    forwards_nothing: bool = False
    unforwarded: frozenset[str] = frozenset()
    strict: frozenset[str] = frozenset()
    ruleset: Sequence[Mapping[str, Any]] = ()
    unseen: str = ""
    is_near: bool = False


def survey(flow: Flow, tun: str, proc: Path = PROC_NET) -> Survey:
    """Look at the network for a flow; this blocks for some hundredths of a second.

    Raises NetworkError if the kernel can't be asked.
    """
    try:
        messages = MessageSocket()
    except OSError as error:
        raise refusal(error.errno or 0, "netlink") from None
    with contextlib.closing(messages):
        to_source = way_to(messages, flow.source)
        arrives = "" if to_source.is_local else to_source.device
        to_destination = way_to(messages, flow.destination)
        out = way_of(messages, flow, arrives)
        on = way_of(messages, flow, tun)
        leaves = "" if on.is_local or to_destination.is_local else on.device
        back = way_of(messages, flow.reverse, leaves)
        is_near = any(flow.destination in each.network for each in dumps.addresses(messages))
    interfaces = {each for each in (arrives, tun, leaves) if each}
    version = flow.source.version
    try:
        ruleset, unseen = list_ruleset(), ""
    except NetworkError as error:
        ruleset, unseen = [], str(error)
    return Survey(
        to_source,
        to_destination,
        out,
        on,
        back,
        _read(proc / _WHOLE[version]) == 0,
        frozenset(each for each in interfaces if _forwarding(proc, version, each) == 0),
        frozenset(each for each in interfaces if version == 4 and _rp_filter(proc, each)),
        ruleset,
        unseen,
        is_near,
    )


_WHOLE = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
"""The settings that let a host forward at all, by IP version."""


def forwarding_setting(version: int, interface: str, *, whole: bool) -> str:
    """Return the name of the setting that lets packets of an interface, or all, be forwarded."""
    if whole or version == 6:
        return "net." + _WHOLE[version].replace("/", ".")
    # sysctl(8): a dot of a name is written as a slash.
    return f"net.ipv4.conf.{interface.replace('.', '/')}.forwarding"


def _forwarding(proc: Path, version: int, interface: str) -> int:
    # IPv6 looks at the setting of the host alone.
    if version == 6:
        return _read(proc / _WHOLE[6])
    return _read(proc / "ipv4/conf" / interface / "forwarding")


def _rp_filter(proc: Path, interface: str) -> bool:
    names = ("all", interface)
    return max(_read(proc / "ipv4/conf" / name / "rp_filter") for name in names) == _STRICT


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1
