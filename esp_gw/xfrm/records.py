"""States and policies of the kernel, as printed by `ip xfrm`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from esp_gw.model import Direction, IPAddress, IPNetwork, KeyMaterial, Mode, Suite


class PolicyDirection(enum.StrEnum):
    """Packets that a policy applies to: leaving, for this host, or to be forwarded."""

    OUT = "out"
    IN = "in"
    FWD = "fwd"


@dataclass(frozen=True, slots=True)
class XfrmSelector:
    """Inner traffic from `src` to `dst`; None means any protocol or any port."""

    src: IPNetwork
    dst: IPNetwork
    protocol: int | None = None
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True, slots=True)
class UdpPorts:
    """The ports of UDP-encapsulated ESP, of the sender and of the receiver."""

    sport: int
    dport: int


@dataclass(frozen=True, slots=True)
class XfrmState:
    """One SA. `seq` is the highest number received, `oseq` the last one sent, 0 for none.

    A `window` of 0 means that the kernel kept no replay window. `direction` is known if it was
    given to the kernel (Linux 6.10). `where` is the line of the input on which the state begins.
    """

    where: str
    src: IPAddress
    dst: IPAddress
    spi: int
    reqid: int
    mode: Mode
    suite: Suite
    keymat: KeyMaterial = field(repr=False)
    esn: bool
    window: int
    seq: int
    oseq: int
    udp: UdpPorts | None
    selector: XfrmSelector | None
    direction: Direction | None


@dataclass(frozen=True, slots=True)
class Template:
    """The SA that a policy requires; an `spi` of 0 or an unspecified address matches any."""

    src: IPAddress
    dst: IPAddress
    spi: int
    reqid: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class XfrmPolicy:
    """One policy; a lower `priority` is tried first. Without a template, packets pass in clear."""

    where: str
    selector: XfrmSelector
    direction: PolicyDirection
    block: bool
    priority: int
    template: Template | None


@dataclass(frozen=True, slots=True)
class Dump:
    """Contents of one or more outputs of `ip xfrm state` and `ip xfrm policy`."""

    states: tuple[XfrmState, ...] = ()
    policies: tuple[XfrmPolicy, ...] = ()
