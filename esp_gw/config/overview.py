"""A configuration, and all that it may have, as values for a person or a script; without keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from esp_gw.config.conflicts import describe_selector
from esp_gw.config.difference import setting_values, shown_setting, shown_value
from esp_gw.config.models import HalfModel, KeySource, PolicyModel, TunnelModel
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.model import ANY, AUTO, Tunnel

REQUIRED = "required"
_MODELS: dict[str, type[BaseModel]] = {
    "tunnels.NAME": TunnelModel,
    "tunnels.NAME.outbound": HalfModel,
    "tunnels.NAME.inbound": HalfModel,
    "key": KeySource,
    "policies": PolicyModel,
}


def overview(desired: Desired) -> dict[str, Any]:
    """Return settings, tunnels and policies; a setting has `shown`, and `is_default`."""
    defaults = {place: value for place, _, value in setting_values(GatewaySettings())}
    return {
        "settings": {
            place: {"shown": shown_setting(place, value), "is_default": value == defaults[place]}
            for place, _, value in setting_values(desired.settings)
        },
        "tunnels": [_tunnel(tunnel) for tunnel in desired.tunnels],
        "policies": [
            f"{policy.action} {describe_selector(selector)}"
            for policy in desired.policies
            if policy.tunnel is None
            for selector in policy.selectors
        ],
    }


def _tunnel(tunnel: Tunnel) -> dict[str, Any]:
    return {
        "name": tunnel.name,
        "mode": tunnel.mode,
        "encapsulation": tunnel.encapsulation,
        "suite": tunnel.suite.name,
        "local": AUTO if tunnel.local.is_unspecified else str(tunnel.local),
        "remote": ANY if tunnel.learns_peer else tunnel.remote_name or str(tunnel.remote),
        "local_ts": [str(prefix) for prefix in tunnel.local_ts],
        "remote_ts": [str(prefix) for prefix in tunnel.remote_ts],
        "sas": list(tunnel.sas),
    }


def reference() -> list[dict[str, str]]:
    """Return every field of the files, its default, and if a reload or a restart changes it."""
    found = [
        {
            "field": place,
            "default": shown_setting(place, value),
            "changes_at": "reload" if setting.live else "restart",
        }
        for place, setting, value in setting_values(GatewaySettings())
    ]
    for place, model in _MODELS.items():
        for name, field in model.model_fields.items():
            default = field.default
            text = REQUIRED if default is PydanticUndefined else shown_value(default)
            found.append({"field": f"{place}.{name}", "default": text, "changes_at": "reload"})
    return found
