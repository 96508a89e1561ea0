"""The models of what a person configures, and what they expand to in the words of esp_gw.model.

The fields of a model are validated in their order, so a check that looks at an earlier field runs
only where that field is good. The CLI's entries (config/added.py) build on the same models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from esp_gw.config import fields
from esp_gw.config.fields import Strict, fault
from esp_gw.config.keyfile import is_a_key, parse_keymat, read_credential, read_key_file
from esp_gw.errors import KeyFileError
from esp_gw.model import (
    DEFAULT_REPLAY_WINDOW,
    DEFAULT_SUITE,
    MAX_SPI,
    UDP_ENCAP_PORT,
    Action,
    Direction,
    Encapsulation,
    GatewaySettings,
    IPNetwork,
    KeyMaterial,
    Mode,
    Offloads,
    Origin,
    Policy,
    PortRange,
    Sa,
    Selector,
    Suite,
    Tunnel,
)

DEFAULT_KEEPALIVE = 20
"""Seconds between NAT keepalives (RFC 3948 4)."""

Prefixes = tuple[IPNetwork, ...]
_DEFAULTS = GatewaySettings()


class OffloadModel(Strict):
    """The mapping `gateway.offload`."""

    tso: fields.Flag = True
    uso: fields.Flag = True
    udp_gso: fields.Flag = True
    udp_gro: fields.Flag = True
    merge: fields.Flag = True


class CryptoModel(Strict):
    """The section `crypto`."""

    provider: fields.ProviderName = _DEFAULTS.provider
    offload: fields.AfAlgChoice = _DEFAULTS.af_alg


class GatewayModel(Strict):
    """The section `gateway`."""

    interface: fields.InterfaceName = _DEFAULTS.interface
    address: fields.Addresses = ()
    port: fields.UdpPort = _DEFAULTS.port
    engine: fields.EngineName = _DEFAULTS.engine
    mtu: fields.Mtu | None = None
    fwmark: fields.Mark = _DEFAULTS.fwmark
    table: fields.Table = _DEFAULTS.table
    state_dir: fields.AbsolutePath = _DEFAULTS.state_dir
    control_socket: fields.SocketPath = _DEFAULTS.control_socket
    workers: fields.Workers | None = None
    pin_workers: fields.Flag = _DEFAULTS.pin_workers
    busy_poll_us: fields.BusyPoll = _DEFAULTS.busy_poll_us
    offload: OffloadModel = OffloadModel()
    allow_inline_keys: fields.Flag = False

    def settings(self, crypto: CryptoModel) -> GatewaySettings:
        """The gateway's settings without what matters only while the files are read."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        del values["allow_inline_keys"]
        return GatewaySettings(
            addresses=values.pop("address"),
            offload=Offloads(**values.pop("offload").model_dump()),
            provider=crypto.provider,
            af_alg=crypto.offload,
            **values,
        )


class KeySource(Strict):
    """Where a key comes from: exactly one of a file, a systemd credential, or the text itself."""

    file: str | None = None
    credential: str | None = None
    inline: SecretStr | None = None

    @field_validator("file", "credential")
    @classmethod
    def _is_no_key(cls, value: str | None) -> str | None:
        if value is not None and is_a_key(value):
            raise fault("looks like a key: write the name of a file or credential that holds it")
        return value

    @model_validator(mode="after")
    def _is_one(self) -> KeySource:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise fault("expected exactly one of file, credential and inline")
        return self

    @property
    def kind(self) -> str:
        """The field that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def read(self, suite: Suite, count: int, folder: Path) -> tuple[KeyMaterial, ...]:
        """The keys of `count` SAs; a file's name is relative to `folder`. Raises KeyFileError."""
        if self.inline is not None:
            if count > 1:
                text = f"holds one key, and each of {count} SAs needs its own: use a key file"
                raise KeyFileError(text)
            return (parse_keymat(self.inline.get_secret_value(), suite),)
        if self.credential is not None:
            return read_credential(self.credential, suite, count)
        return read_key_file(folder / str(self.file), suite, count)


class HalfModel(Strict):
    """One direction of a tunnel: the SPI of its first SA, and the keys of all."""

    spi: fields.Spi
    key: KeySource


class SaFields(Strict):
    """What a tunnel of the configuration and a single SA of the CLI have in common.

    `local` and `remote` are outer addresses and `remote_port` the peer's UDP port; `local_ts`,
    `remote_ts`, `protocol`, `local_ts_port` and `remote_ts_port` are the inner traffic.
    """

    mode: fields.ModeName = Mode.TUNNEL
    encapsulation: fields.EncapsulationName = Encapsulation.UDP
    local: fields.OuterAddress
    remote: fields.OuterAddress
    remote_port: fields.UdpPort | None = None
    local_ts: fields.Prefixes | None = Field(default=None, validate_default=True)
    remote_ts: fields.Prefixes | None = Field(default=None, validate_default=True)
    protocol: fields.ProtocolNumber = None
    local_ts_port: fields.Ports = None
    remote_ts_port: fields.Ports = None
    suite: fields.SuiteName = DEFAULT_SUITE
    esn: fields.Flag = True
    replay_window: fields.ReplayWindow = DEFAULT_REPLAY_WINDOW
    keepalive: fields.Keepalive | None = None

    @field_validator("remote")
    @classmethod
    def _is_another_host(
        cls, remote: fields.OuterAddress, info: ValidationInfo
    ) -> fields.OuterAddress:
        local = info.data.get("local")
        if local is not None and local == remote:
            raise fault(f"is the same address as local, {remote}")
        if local is not None and local.version != remote.version:
            raise fault(f"is an {fields.family(remote)} address, local is {fields.family(local)}")
        return remote

    @field_validator("remote_port", "keepalive")
    @classmethod
    def _has_udp(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and info.data.get("encapsulation") is Encapsulation.NONE:
            raise fault("has a meaning only with encapsulation: udp")
        return value

    @field_validator("local_ts", "remote_ts")
    @classmethod
    def _suits_the_mode(cls, value: Prefixes | None, info: ValidationInfo) -> Prefixes | None:
        mode = info.data.get("mode")
        if mode is Mode.TUNNEL and value is None:
            raise fault("is missing: tunnel mode needs the prefixes behind this side")
        outer = info.data.get(str(info.field_name).removesuffix("_ts"))
        if mode is Mode.TRANSPORT and value is not None and outer is not None:
            host = fields.host_network(outer)
            if value != (host,):
                raise fault(f"transport mode carries only the outer address itself: {host}")
        return value

    @field_validator("remote_ts")
    @classmethod
    def _is_paired(cls, value: Prefixes | None, info: ValidationInfo) -> Prefixes | None:
        local = info.data.get("local_ts") or ()
        for prefix in value or ():
            # Everything to everything leaves it to routing what is sent at all.
            if prefix.prefixlen and prefix in local:
                raise fault(f"local_ts and remote_ts are the same network, {prefix}")
        return _paired(value, info)

    @field_validator("local_ts_port", "remote_ts_port")
    @classmethod
    def _has_ports(cls, value: PortRange | None, info: ValidationInfo) -> PortRange | None:
        return _with_ports(value, info)

    @property
    def local_prefixes(self) -> Prefixes:
        """`local_ts`, or in transport mode the outer address."""
        return self.local_ts or (fields.host_network(self.local),)

    @property
    def remote_prefixes(self) -> Prefixes:
        """`remote_ts`, or in transport mode the outer address."""
        return self.remote_ts or (fields.host_network(self.remote),)

    def selectors(self) -> tuple[Selector, ...]:
        """The inner traffic: every pair of prefixes of one family."""
        return fields.selectors_of(
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
        """One SA of these settings, which has their `selectors`."""
        keepalive = 0
        if direction is Direction.OUTBOUND and self.encapsulation is Encapsulation.UDP:
            keepalive = DEFAULT_KEEPALIVE if self.keepalive is None else self.keepalive
        return Sa(
            name=name,
            direction=direction,
            spi=spi,
            suite=self.suite,
            keymat=keymat,
            mode=self.mode,
            encapsulation=self.encapsulation,
            local=self.local,
            remote=self.remote,
            selectors=selectors,
            remote_port=self.remote_port or UDP_ENCAP_PORT,
            esn=self.esn,
            replay_window=self.replay_window,
            keepalive=keepalive,
            tunnel=tunnel,
            pair=pair,
            origin=origin,
            used_seq=used_seq,
        )


class TunnelModel(SaFields):
    """One entry of `tunnels`: pairs of SAs and the policy that sends traffic into them."""

    sas: fields.SaCount = 1
    outbound: HalfModel
    inbound: HalfModel

    @field_validator("outbound", "inbound")
    @classmethod
    def _has_spis_for_all(cls, half: HalfModel, info: ValidationInfo) -> HalfModel:
        count = info.data.get("sas", 1)
        if half.spi + count - 1 > MAX_SPI:
            raise fault(
                f"spi: {count} SAs have SPIs from {half.spi:#x} on, and the last there is is "
                f"{MAX_SPI:#x}"
            )
        return half

    def expand(
        self, name: str, keymats_out: Sequence[KeyMaterial], keymats_in: Sequence[KeyMaterial]
    ) -> tuple[Tunnel, tuple[Sa, ...], Policy]:
        """The tunnel, its SAs NAME/out and NAME/in, and its protect policy NAME.

        Further SAs are NAME/out.2 and NAME/in.2 and so on: with more or fewer of them, the others
        stay what they are.
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
            # All of them have one NAT mapping; the first SA's keepalives keep it.
            sas += [replace(outbound, keepalive=0) if index else outbound, inbound]
        outbound_names = tuple(sa.name for sa in sas if sa.direction is Direction.OUTBOUND)
        policy = Policy(name, Action.PROTECT, selectors, sas=outbound_names, tunnel=name)
        tunnel = Tunnel(
            name=name,
            mode=self.mode,
            encapsulation=self.encapsulation,
            suite=self.suite,
            local=self.local,
            remote=self.remote,
            local_ts=self.local_prefixes,
            remote_ts=self.remote_prefixes,
            sas=tuple(sa.name for sa in sas),
            policies=(name,),
        )
        return tunnel, tuple(sas), policy


class PolicyFields(Strict):
    """What a policy matches; without `local_ts` it is all of the families of `remote_ts`."""

    local_ts: fields.Prefixes | None = None
    remote_ts: fields.Prefixes
    protocol: fields.ProtocolNumber = None
    local_port: fields.Ports = None
    remote_port: fields.Ports = None

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
        """The inner traffic: every pair of prefixes of one family."""
        versions = sorted({prefix.version for prefix in self.remote_ts})
        local = self.local_ts or tuple(fields.EVERYTHING[version] for version in versions)
        return fields.selectors_of(
            local, self.remote_ts, self.protocol, self.local_port, self.remote_port
        )


class PolicyModel(PolicyFields):
    """One entry of `policies`: protect policies come from the tunnels."""

    name: fields.Name | None = None
    action: fields.UnprotectedActionName

    def policy(self, default_name: str) -> Policy:
        """The policy of this entry."""
        return Policy(self.name or default_name, self.action, self.selectors())


def _paired(remote: Prefixes | None, info: ValidationInfo) -> Prefixes | None:
    local = info.data.get("local_ts")
    if local and remote and (text := fields.pairing_fault(local, remote)):
        raise fault(text)
    return remote


def _with_ports(ports: PortRange | None, info: ValidationInfo) -> PortRange | None:
    if text := fields.ports_fault(ports, info.data.get("protocol")):
        raise fault(text)
    return ports
