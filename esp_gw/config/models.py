"""The models of the configuration, and their expansion into the values of esp_gw/model.py.

Fields are validated in order of definition: a validator can read earlier fields, and finds only the
valid ones. The entries of the CLI (config/added.py) build on the same models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from esp_gw.config import types
from esp_gw.config.keyfile import is_a_key, parse_keymat, read_credential, read_key_file
from esp_gw.config.types import Strict
from esp_gw.desired import GatewaySettings, Setting, settings_of
from esp_gw.errors import KeyFileError
from esp_gw.model import (
    ANY,
    DEFAULT_REPLAY_WINDOW,
    DEFAULT_SUITE,
    Action,
    Direction,
    Encapsulation,
    IPNetwork,
    KeyMaterial,
    Mode,
    Origin,
    Policy,
    PortRange,
    Sa,
    Selector,
    Suite,
    Tunnel,
)
from esp_gw.protocol import MAX_SPI, UDP_ENCAP_PORT
from esp_gw.values import FieldError, family, host_network

DEFAULT_KEEPALIVE = 20
"""Seconds between NAT keepalives (RFC 3948 4)."""

Prefixes = tuple[IPNetwork, ...]


def _model_field(setting: Setting, default: object) -> tuple[Any, object]:
    """Type and default of a setting in the model of its section."""
    if is_dataclass(setting.parse):
        model = _model(setting.parse)
        return model, model()
    kind: Any = Annotated[Any, PlainValidator(setting.parse)]
    if setting.many:
        kind = Annotated[tuple[kind, ...], BeforeValidator(types.as_list)]
    return (kind if default is not None else kind | None), default


def _model(dataclass: Any, section: str = "gateway") -> type[Strict]:
    """The model of a section, or of a mapping in it, built from its setting definitions."""
    defaults = dataclass()
    model_fields: dict[str, Any] = {
        setting.key or name: _model_field(setting, getattr(defaults, name))
        for name, setting in settings_of(dataclass).items()
        if setting.section == section
    }
    return create_model(f"{dataclass.__name__}_{section}", __base__=Strict, **model_fields)


SETTINGS_MODELS = {section: _model(GatewaySettings, section) for section in ("gateway", "crypto")}
"""The models of the sections that hold settings, by section name."""


def gateway_settings(sections: Mapping[str, Strict]) -> GatewaySettings:
    """The gateway settings from the parsed sections, keyed by section name."""
    chosen: dict[str, Any] = {}
    for name, setting in settings_of(GatewaySettings).items():
        value = getattr(sections[setting.section], setting.key or name)
        chosen[name] = setting.parse(**dict(value)) if isinstance(value, Strict) else value
    return GatewaySettings(**chosen)


class KeySource(Strict):
    """Source of a key: exactly one of a file, a systemd credential, and inline text."""

    file: str | None = None
    credential: str | None = None
    inline: SecretStr | None = None

    @field_validator("file", "credential")
    @classmethod
    def _is_no_key(cls, value: str | None) -> str | None:
        if value is not None and is_a_key(value):
            raise FieldError(
                "looks like a key: write the name of a file or credential that holds it"
            )
        return value

    @model_validator(mode="after")
    def _is_one(self) -> KeySource:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise FieldError("expected exactly one of file, credential and inline")
        return self

    @property
    def kind(self) -> str:
        """Name of the field that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def read(self, suite: Suite, count: int, folder: Path) -> tuple[KeyMaterial, ...]:
        """Read the keys of `count` SAs; a relative file is in `folder`. Raises KeyFileError."""
        if self.inline is not None:
            if count > 1:
                text = f"holds one key, and each of {count} SAs needs its own: use a key file"
                raise KeyFileError(text)
            return (parse_keymat(self.inline.get_secret_value(), suite),)
        if self.credential is not None:
            return read_credential(self.credential, suite, count)
        return read_key_file(folder / str(self.file), suite, count)


class HalfModel(Strict):
    """One direction of a tunnel: the SPI of its first SA, and the keys of all its SAs."""

    spi: types.Spi
    key: KeySource


class SaFields(Strict):
    """Fields common to a configured tunnel and a single SA added by the CLI.

    `local` and `remote` are outer addresses; a `local` of None follows the route to the peer, and a
    `remote` of `any` is learned from the peer.
    `remote_port` is the UDP port of the peer. `local_original` and `remote_original` are the ends
    of transport mode as the peer has them, where a NAT is between.
    `local_ts`, `remote_ts`, `protocol`, `local_ts_port` and `remote_ts_port` select inner traffic.
    """

    mode: types.ModeName = Mode.TUNNEL
    encapsulation: types.EncapsulationName = Encapsulation.UDP
    local: types.LocalAddress
    remote: types.Remote
    remote_port: types.UdpPort | None = None
    local_original: types.OuterAddress | None = None
    remote_original: types.OuterAddress | None = None
    local_ts: types.Prefixes | None = Field(default=None, validate_default=True)
    remote_ts: types.Prefixes | None = Field(default=None, validate_default=True)
    protocol: types.ProtocolNumber = None
    local_ts_port: types.Ports = None
    remote_ts_port: types.Ports = None
    suite: types.SuiteName = DEFAULT_SUITE
    esn: types.Flag = True
    replay_window: types.ReplayWindow = DEFAULT_REPLAY_WINDOW
    keepalive: types.Keepalive | None = None
    liveness: types.Liveness = 0

    @field_validator("local")
    @classmethod
    def _suits_transport_mode(
        cls, local: types.LocalAddress, info: ValidationInfo
    ) -> types.LocalAddress:
        if local is None and info.data.get("mode") is Mode.TRANSPORT:
            raise FieldError(
                "transport mode protects one address: write it instead of auto, or use tunnel mode"
            )
        return local

    @field_validator("remote")
    @classmethod
    def _is_another_host(cls, remote: types.Remote, info: ValidationInfo) -> types.Remote:
        local = info.data.get("local")
        if isinstance(remote, str):
            what = "any" if remote == ANY else "a name"
            if info.data.get("mode") is Mode.TRANSPORT:
                raise FieldError(
                    f"transport mode protects one address: write it instead of {what}, or use "
                    "tunnel mode"
                )
            if remote == ANY and local is None and "local" in info.data:
                raise FieldError(
                    "any needs a written local address: auto is that of the route to the peer, "
                    "which is not known"
                )
            return remote
        if local is not None and local == remote:
            raise FieldError(f"is the same address as local, {remote}")
        if local is not None and local.version != remote.version:
            raise FieldError(f"is an {family(remote)} address, local is {family(local)}")
        return remote

    @field_validator("remote_port", "keepalive")
    @classmethod
    def _has_udp(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and info.data.get("encapsulation") is Encapsulation.NONE:
            raise FieldError("is valid only with encapsulation: udp")
        if value and info.field_name == "remote_port" and info.data.get("remote") == ANY:
            raise FieldError("is learned with the address of remote: any; leave it out")
        return value

    @field_validator("local_original", "remote_original")
    @classmethod
    def _has_a_nat(
        cls, value: types.OuterAddress | None, info: ValidationInfo
    ) -> types.OuterAddress | None:
        if value is None:
            return value
        if info.data.get("mode") is Mode.TUNNEL:
            raise FieldError("is valid only with mode: transport")
        if info.data.get("encapsulation") is Encapsulation.NONE:
            raise FieldError("is valid only with encapsulation: udp: no NAT changes the address")
        local = info.data.get("local")
        if local is not None and local.version != value.version:
            raise FieldError(f"is an {family(value)} address, local is {family(local)}")
        return value

    @field_validator("local_ts", "remote_ts")
    @classmethod
    def _suits_the_mode(cls, value: Prefixes | None, info: ValidationInfo) -> Prefixes | None:
        mode = info.data.get("mode")
        if mode is Mode.TUNNEL and value is None:
            side = "this side" if info.field_name == "local_ts" else "the peer"
            raise FieldError(f"is missing: tunnel mode needs the prefixes behind {side}")
        outer = info.data.get(str(info.field_name).removesuffix("_ts"))
        if mode is Mode.TRANSPORT and value is not None and outer is not None:
            host = host_network(outer)
            if value != (host,):
                raise FieldError(f"transport mode carries only the outer address itself: {host}")
        return value

    @field_validator("remote_ts")
    @classmethod
    def _is_paired(cls, value: Prefixes | None, info: ValidationInfo) -> Prefixes | None:
        local = info.data.get("local_ts") or ()
        for prefix in value or ():
            # 0.0.0.0/0 to 0.0.0.0/0 is allowed: routing decides what reaches the tunnel.
            if prefix.prefixlen and prefix in local:
                raise FieldError(f"local_ts and remote_ts are the same network, {prefix}")
        return _paired(value, info)

    @field_validator("local_ts_port", "remote_ts_port")
    @classmethod
    def _has_ports(cls, value: PortRange | None, info: ValidationInfo) -> PortRange | None:
        return _with_ports(value, info)

    @property
    def outer_local(self) -> types.OuterAddress:
        """The local outer address; unspecified if the route to the peer decides."""
        return type(self.outer_remote)(0) if self.local is None else self.local

    @property
    def outer_remote(self) -> types.OuterAddress:
        """The peer's outer address; unspecified for a name and for `any`."""
        if isinstance(self.remote, str):
            return IPv4Address(0) if self.local is None else type(self.local)(0)
        return self.remote

    @property
    def remote_name(self) -> str | None:
        """The peer's name, if it has one."""
        return self.remote if isinstance(self.remote, str) and self.remote != ANY else None

    @property
    def local_prefixes(self) -> Prefixes:
        """`local_ts`, or the outer address in transport mode."""
        return self.local_ts or (host_network(self.outer_local),)

    @property
    def remote_prefixes(self) -> Prefixes:
        """`remote_ts`, or the outer address in transport mode."""
        return self.remote_ts or (host_network(self.outer_remote),)

    def selectors(self) -> tuple[Selector, ...]:
        """Selectors of the inner traffic: every pair of prefixes of one family."""
        return types.selectors_of(
            self.local_prefixes,
            self.remote_prefixes,
            self.protocol,
            self.local_ts_port,
            self.remote_ts_port,
        )

    def build_sa(
        self,
        name: str,
        direction: Direction,
        spi: int,
        keymat: KeyMaterial,
        selectors: tuple[Selector, ...],
        *,
        tunnel: str | None = None,
        pair: str | None = None,
        origin: Origin = Origin.CONFIG,
        used_seq: int = 0,
    ) -> Sa:
        """Build one SA from these fields; `selectors` is the result of `selectors()`."""
        outbound = direction is Direction.OUTBOUND
        keepalive = 0
        if outbound and self.encapsulation is Encapsulation.UDP:
            # Authentic keepalives also keep the mapping of a NAT.
            default = 0 if self.liveness else DEFAULT_KEEPALIVE
            keepalive = default if self.keepalive is None else self.keepalive
        return Sa(
            name=name,
            direction=direction,
            spi=spi,
            suite=self.suite,
            keymat=keymat,
            mode=self.mode,
            encapsulation=self.encapsulation,
            local=self.outer_local,
            remote=self.outer_remote,
            remote_name=self.remote_name,
            local_original=self.local_original,
            remote_original=self.remote_original,
            selectors=selectors,
            remote_port=self.remote_port or UDP_ENCAP_PORT,
            esn=self.esn,
            replay_window=self.replay_window,
            keepalive=keepalive,
            liveness=self.liveness if outbound else 0,
            tunnel=tunnel,
            pair=pair,
            origin=origin,
            used_seq=used_seq,
        )


class TunnelModel(SaFields):
    """One entry of `tunnels`: pairs of SAs and the protect policy that uses them."""

    sas: types.SaCount = 1
    outbound: HalfModel
    inbound: HalfModel

    @field_validator("outbound", "inbound")
    @classmethod
    def _has_spis_for_all(cls, half: HalfModel, info: ValidationInfo) -> HalfModel:
        count = info.data.get("sas", 1)
        if half.spi + count - 1 > MAX_SPI:
            raise FieldError(
                f"spi: {count} SAs need the SPIs from {half.spi:#x} on, but the highest SPI is "
                f"{MAX_SPI:#x}"
            )
        return half

    def expand(
        self, name: str, keymats_out: Sequence[KeyMaterial], keymats_in: Sequence[KeyMaterial]
    ) -> tuple[Tunnel, tuple[Sa, ...], Policy]:
        """The tunnel, its SAs NAME/out and NAME/in, and its protect policy NAME.

        Further SAs are NAME/out.2 and NAME/in.2 and so on, so a change of the number of SAs does
        not rename any that remain. Where there are several, each has its lane.
        """
        selectors = self.selectors()
        sas: list[Sa] = []
        for index, (keymat_out, keymat_in) in enumerate(zip(keymats_out, keymats_in, strict=True)):
            number = f".{index + 1}" if index else ""
            names = (f"{name}/out{number}", f"{name}/in{number}")
            outbound = self.build_sa(
                names[0],
                Direction.OUTBOUND,
                self.outbound.spi + index,
                keymat_out,
                selectors,
                tunnel=name,
                pair=names[1],
            )
            inbound = self.build_sa(
                names[1],
                Direction.INBOUND,
                self.inbound.spi + index,
                keymat_in,
                selectors,
                tunnel=name,
                pair=names[0],
            )
            if len(keymats_out) > 1:
                outbound, inbound = replace(outbound, lane=index), replace(inbound, lane=index)
            if index:
                # All SAs share one peer and one NAT mapping: the first SA's keepalives are enough.
                outbound = replace(outbound, keepalive=0, liveness=0)
            sas += [outbound, inbound]
        outbound_names = tuple(sa.name for sa in sas if sa.direction is Direction.OUTBOUND)
        policy = Policy(name, Action.PROTECT, selectors, sas=outbound_names, tunnel=name)
        tunnel = Tunnel(
            name=name,
            mode=self.mode,
            encapsulation=self.encapsulation,
            suite=self.suite,
            local=self.outer_local,
            remote=self.outer_remote,
            remote_name=self.remote_name,
            local_ts=self.local_prefixes,
            remote_ts=self.remote_prefixes,
            sas=tuple(sa.name for sa in sas),
            policies=(name,),
        )
        return tunnel, tuple(sas), policy


class PolicyFields(Strict):
    """Selector fields of a policy; `local_ts` defaults to all of the families of `remote_ts`."""

    local_ts: types.Prefixes | None = None
    remote_ts: types.Prefixes
    protocol: types.ProtocolNumber = None
    local_port: types.Ports = None
    remote_port: types.Ports = None

    @field_validator("remote_ts")
    @classmethod
    def _is_paired(cls, value: Prefixes, info: ValidationInfo) -> Prefixes:
        _paired(value, info)
        return value

    @field_validator("local_port", "remote_port")
    @classmethod
    def _has_ports(cls, value: PortRange | None, info: ValidationInfo) -> PortRange | None:
        return _with_ports(value, info)

    def selectors(self) -> tuple[Selector, ...]:
        """Selectors of the inner traffic: every pair of prefixes of one family."""
        versions = sorted({prefix.version for prefix in self.remote_ts})
        local = self.local_ts or tuple(types.EVERYTHING[version] for version in versions)
        return types.selectors_of(
            local, self.remote_ts, self.protocol, self.local_port, self.remote_port
        )


class PolicyModel(PolicyFields):
    """One entry of `policies`: bypass or discard; protect policies come from the tunnels."""

    name: types.Name | None = None
    action: types.UnprotectedActionName

    def policy(self, default_name: str) -> Policy:
        """The policy of this entry, with `default_name` if it has no name."""
        return Policy(self.name or default_name, self.action, self.selectors())


def _paired(remote: Prefixes | None, info: ValidationInfo) -> Prefixes | None:
    local = info.data.get("local_ts")
    if local and remote and (text := types.pairing_fault(local, remote)):
        raise FieldError(text)
    return remote


def _with_ports(ports: PortRange | None, info: ValidationInfo) -> PortRange | None:
    if text := types.ports_fault(ports, info.data.get("protocol")):
        raise FieldError(text)
    return ports
