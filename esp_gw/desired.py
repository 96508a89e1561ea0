"""The desired state of a gateway: its settings, tunnels, SAs and policies.

Each setting is defined once, here: its default, the parser of its value and its place in the
configuration. The models of the YAML sections are built from these definitions, and an engine gets
the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from esp_gw import values
from esp_gw.model import (
    AF_ALG_AUTO,
    AUTO,
    NORMAL,
    PROVIDER_AUTO,
    IPAddress,
    Origin,
    Policy,
    Sa,
    Tunnel,
)
from esp_gw.protocol import MIN_IPV6_MTU, UDP_ENCAP_PORT

DEFAULT_TABLE = 4500


@dataclass(frozen=True, slots=True)
class Setting:
    """The definition of a setting, apart from its default.

    `parse` converts a value as written, or each entry of a list if `many` is set; for a mapping it
    is the dataclass of its settings. `section` and `key` are the place in the configuration; an
    empty key means the name of the field. A reload applies a `live` setting, the others need a
    restart.
    """

    parse: Callable[..., object]
    many: bool = False
    section: str = "gateway"
    key: str = ""
    live: bool = False


def _setting(default: Any, parse: Callable[..., object], **place: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(parse, **place)})


@dataclass(frozen=True, slots=True)
class Offloads:
    """Offloads of the native engine to the kernel and the network card.

    `tso`, `uso`: super-packets of TCP and UDP from the TUN. `udp_gso`, `udp_gro`: ESP packets of
    one size in one send, in one receive. `merge`: adjacent packets merged before the TUN write.
    """

    tso: bool = _setting(True, values.parse_flag)
    uso: bool = _setting(True, values.parse_flag)
    udp_gso: bool = _setting(True, values.parse_flag)
    udp_gro: bool = _setting(True, values.parse_flag)
    merge: bool = _setting(True, values.parse_flag)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of an engine; an engine reports unsupported ones in its `status`.

    `interface` is the name of the TUN device, `port` the local UDP port. `fwmark` marks packets of
    the outer sockets so that routing keeps them out of the TUN. Only the native engine uses
    `workers` (None: the number of processors of the process), `pin_workers` and `offload`. A
    `latency` of `low` keeps processors out of idle states while there is traffic.
    """

    interface: str = _setting("esp0", values.parse_interface)
    port: int = _setting(UDP_ENCAP_PORT, values.parse_udp_port)
    fwmark: int = _setting(0xE5B, values.parse_mark)
    workers: int | None = _setting(None, values.parse_workers)
    min_mtu: int = _setting(MIN_IPV6_MTU, values.parse_mtu)
    pin_workers: bool = _setting(False, values.parse_flag)
    latency: str = _setting(NORMAL, values.parse_latency)
    offload: Offloads = _setting(Offloads(), Offloads)  # noqa: RUF009 - it is frozen
    provider: str = _setting(PROVIDER_AUTO, values.parse_provider, section="crypto")
    af_alg: str = _setting(AF_ALG_AUTO, values.parse_af_alg, section="crypto", key="offload")


@dataclass(frozen=True, slots=True)
class GatewaySettings(EngineSettings):
    """The settings of a gateway, apart from its tunnels.

    `addresses` are assigned to the TUN device. An `mtu` of None is computed from the path MTU.
    `table` is the routing table that holds the routes into the TUN. `firewall` is the packet filter
    that drops cleartext of protected prefixes, `source_check` its part that drops packets with a
    forged source on their way into the TUN. `hook` is a program with arguments, for the changes
    of the tunnels' states. `allow_cut_off` lets the host lose its default gateway.
    """

    addresses: tuple[IPAddress, ...] = _setting(
        (), values.parse_address, many=True, key="address", live=True
    )
    engine: str = _setting("auto", values.parse_engine)
    mtu: int | None = _setting(None, values.parse_mtu, live=True)
    table: int = _setting(DEFAULT_TABLE, values.parse_table)
    firewall: str = _setting(AUTO, values.parse_auto, live=True)
    source_check: str = _setting(AUTO, values.parse_auto, live=True)
    state_dir: str = _setting("/var/lib/esp-gw", values.parse_absolute_path)
    control_socket: str = _setting("/run/esp-gw/control.sock", values.parse_socket_path)
    hook: tuple[str, ...] = _setting((), values.parse_argument, many=True, live=True)
    allow_cut_off: bool = _setting(False, values.parse_flag, live=True)
    allow_inline_keys: bool = _setting(False, values.parse_flag, live=True)


def settings_of(dataclass: type) -> dict[str, Setting]:
    """The definitions of the settings in a dataclass, by field name."""
    return {each.name: each.metadata["setting"] for each in fields(dataclass)}


@dataclass(frozen=True, slots=True)
class Desired:
    """The combined state requested by configuration, CLI and IKE; policies are in SPD order.

    If it `listens`, IKE is received at the port of ESP in UDP of each address of the host: those of
    `listening`, once the state is placed.
    """

    settings: GatewaySettings
    tunnels: tuple[Tunnel, ...] = ()
    sas: tuple[Sa, ...] = ()
    policies: tuple[Policy, ...] = ()
    warnings: tuple[str, ...] = ()
    listens: bool = False
    listening: frozenset[IPAddress] = frozenset()

    @property
    def lasting(self) -> Desired:
        """The part that a person asked for, without SAs and policies of IKE."""
        return replace(
            self,
            sas=tuple([sa for sa in self.sas if sa.origin is not Origin.IKE]),
            policies=tuple([each for each in self.policies if each.origin is not Origin.IKE]),
        )

    @property
    def standing(self) -> tuple[Policy, ...]:
        """The standing policies of IKE, in order."""
        return tuple([each for each in self.policies if each.standing])
