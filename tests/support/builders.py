"""One-line builders of SAs, selectors, policies and desired states for the tests."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from esp_gw.desired import Desired, GatewaySettings
from esp_gw.model import (
    SUITES,
    Action,
    Direction,
    Encapsulation,
    IPAddress,
    KeyMaterial,
    Mode,
    Policy,
    PortRange,
    Sa,
    Selector,
    Suite,
)

OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
"""The outer addresses of the two gateways, by IP version."""


def selector(
    local: str = "10.1.0.0/24",
    remote: str = "10.2.0.0/24",
    protocol: int | None = None,
    local_port: PortRange | None = None,
    remote_port: PortRange | None = None,
) -> Selector:
    return Selector(ip_network(local), ip_network(remote), protocol, local_port, remote_port)


def mirrored(selectors: tuple[Selector, ...]) -> tuple[Selector, ...]:
    """The same traffic as seen from the other gateway."""
    return tuple(
        Selector(s.remote, s.local, s.protocol, s.remote_port, s.local_port) for s in selectors
    )


def make_sa(
    name: str = "t/out",
    direction: Direction = Direction.OUTBOUND,
    spi: int = 0x1001,
    *selectors: Selector,
    suite: Suite = SUITES["aes128gcm16"],
    mode: Mode = Mode.TUNNEL,
    encapsulation: Encapsulation = Encapsulation.UDP,
    local: str = OUTER[4][0],
    remote: str = OUTER[4][1],
    esn: bool = True,
    key: int | None = None,
    pair: str | None = None,
) -> Sa:
    """An SA whose key is derived from `key`, or from its SPI by default."""
    seed = (spi if key is None else key) % 256
    return Sa(
        name=name,
        direction=direction,
        spi=spi,
        suite=suite,
        keymat=KeyMaterial(bytes([seed]) * suite.key_len, b"salt"),
        mode=mode,
        encapsulation=encapsulation,
        local=ip_address(local),
        remote=ip_address(remote),
        selectors=selectors or (selector(),),
        esn=esn,
        pair=pair,
    )


def protect(name: str, sa: str, *selectors: Selector) -> Policy:
    return Policy(name, Action.PROTECT, selectors, sas=(sa,))


def bypass(name: str, *selectors: Selector) -> Policy:
    return Policy(name, Action.BYPASS, selectors)


def discard(name: str, *selectors: Selector) -> Policy:
    return Policy(name, Action.DISCARD, selectors)


def desired(
    sas: tuple[Sa, ...] = (),
    policies: tuple[Policy, ...] = (),
    *,
    addresses: tuple[IPAddress, ...] = (),
    mtu: int | None = None,
    table: int = 4500,
) -> Desired:
    settings = GatewaySettings(addresses=addresses, mtu=mtu, table=table)
    return Desired(settings, sas=sas, policies=policies)
