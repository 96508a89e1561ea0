"""The SAs of a gateway, as the control interface finds and shows them."""

from __future__ import annotations

from collections.abc import Mapping

from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.parameters import Parameters
from esp_gw.daemon.views import sa_view, waiting_sa_view
from esp_gw.engine.base import SaCounters
from esp_gw.errors import ControlError
from esp_gw.model import Sa


class SaReport:
    """Finds SAs by name, installed or waiting, and shows them without their keys."""

    def __init__(self, gateway: Gateway, health: Health) -> None:
        self._gateway = gateway
        self._health = health

    def view(self, sa: Sa, counters: Mapping[str, SaCounters]) -> Parameters:
        """Return an SA with its counters, the engine's, and its tunnel's condition."""
        if sa.name not in counters:
            return waiting_sa_view(sa, used_up=self._gateway.is_used_up(sa))
        return sa_view(sa, counters[sa.name], self._health.of_sa(sa.name))

    def view_of(self, name: str) -> Parameters:
        """Return the SA of this name, shown. Raises ControlError."""
        return self.view(self.find(name), self._gateway.counters().sas)

    def find(self, name: str) -> Sa:
        """Return the SA of this name. Raises ControlError (NotFound)."""
        for sa in (*self._gateway.sas, *self._gateway.waiting):
            if sa.name == name:
                return sa
        raise ControlError(
            "NotFound", f"there is no SA {name}", hint="'esp-gw sa list' shows the existing ones"
        )
