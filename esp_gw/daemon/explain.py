"""The control methods that explain: the way of a flow, and what drops packets."""

from __future__ import annotations

import asyncio

from esp_gw.daemon.explaining import explain
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.parameters import Parameters
from esp_gw.daemon.steps import Scene
from esp_gw.daemon.views import why_waiting
from esp_gw.errors import ControlError
from esp_gw.model import IPAddress
from esp_gw.network.flow import Flow
from esp_gw.network.survey import survey
from esp_gw.protocol import PORT_PROTOCOLS
from esp_gw.values import FieldError, integer, parse_address, parse_protocol

_parse_port = integer(0, 65535)


class Explainer:
    """Says what becomes of a flow; one request after another, for each runs nft."""

    def __init__(self, gateway: Gateway, health: Health) -> None:
        self._gateway = gateway
        self._health = health
        self._turn = asyncio.Lock()

    async def explain(self, parameters: Parameters) -> Parameters:
        """Return the way of a flow in steps, and what stops it. Raises ControlError."""
        flow = _flow_of(parameters)
        gateway = self._gateway
        tun = gateway.placed.settings.interface
        async with self._turn:
            found = await asyncio.to_thread(survey, flow, tun)
        scene = Scene(
            flow=flow,
            tun=tun,
            policies=gateway.policies,
            sas={sa.name: sa for sa in gateway.sas},
            lacking={
                sa.name: why_waiting(used_up=gateway.is_used_up(sa)) for sa in gateway.waiting
            },
            counters=gateway.counters().sas,
            condition=self._health.of_sa,
            survey=found,
        )
        return {
            "source": str(flow.source),
            "destination": str(flow.destination),
            "protocol": flow.protocol,
            "source_port": flow.source_port,
            "destination_port": flow.destination_port,
            **explain(scene),
        }


def _flow_of(parameters: Parameters) -> Flow:
    """Return the flow that a request names. Raises ControlError."""
    name = ""
    try:
        name = "source"
        source = parse_address(parameters.get(name))
        name = "destination"
        destination = parse_address(parameters.get(name))
        name = "protocol"
        protocol = parse_protocol(parameters.get(name))
        ports = []
        for name in ("source_port", "destination_port"):
            value = parameters.get(name)
            ports.append(None if value is None else _parse_port(value))
    except FieldError as error:
        raise ControlError("InvalidParameter", f"{name}: {error}") from None
    _refuse_contradiction(source, destination, protocol, ports)
    return Flow(source, destination, protocol, *ports)


def _refuse_contradiction(
    source: IPAddress, destination: IPAddress, protocol: int | None, ports: list[int | None]
) -> None:
    if source.version != destination.version:
        raise ControlError("InvalidParameter", f"{source} and {destination} are of two IP versions")
    if any(port is not None for port in ports) and protocol not in PORT_PROTOCOLS:
        raise ControlError(
            "InvalidParameter", "only packets of tcp, udp, sctp, udplite and dccp have ports"
        )
