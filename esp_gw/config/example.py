"""A configuration to read: one tunnel, with comments."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from esp_gw.config.offer import End, Offer, Terms, Way, config_text
from esp_gw.model import DEFAULT_SUITE, Encapsulation, Mode


def example() -> str:
    """A configuration as `esp-gw init` writes it, with addresses of RFC 5737."""
    here, there = (
        End(name, ip_address(f"192.0.2.{end}"), (ip_network(f"10.{end}.0.0/24"),))
        for end, name in enumerate(("pi-a", "pi-b"), 1)
    )
    terms = Terms(Mode.TUNNEL, Encapsulation.UDP, DEFAULT_SUITE, 1)
    return config_text(Offer(here, there, terms, Way(0x1001, ()), Way(0x1002, ())))
