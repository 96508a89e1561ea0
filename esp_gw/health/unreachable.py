"""ICMP errors on a tunnel's packets, in words."""

from __future__ import annotations

from esp_gw.health.causes import Ends
from esp_gw.model import Encapsulation
from esp_gw.network.icmp import Unreachable, What
from esp_gw.protocol import IPPROTO_UDP


def quotes(error: Unreachable, ends: Ends) -> bool:
    """Return True if an ICMP error is on a packet from one end of a tunnel to the other."""
    if error.spi not in ends.outbound:
        # An error that quotes no SPI of ours can be sent by anybody who knows the addresses.
        return False
    is_udp = ends.encapsulation is Encapsulation.UDP
    return (
        error.remote == ends.remote
        and (error.local == ends.local or ends.local.is_unspecified)
        and (error.protocol == IPPROTO_UDP) == is_udp
        and (not is_udp or error.remote_port == ends.remote_port)
    )


def words(error: Unreachable, ends: Ends) -> str:
    """Return a sentence on an ICMP error: who says what, and what may be behind it."""
    peer, who = ends.remote, error.source
    match error.what:
        case What.PORT if ends.encapsulation is Encapsulation.NONE:
            return f"a firewall at {who} rejects ESP, IP protocol 50 (ICMP port unreachable)"
        case What.PORT:
            return (
                f"{who} answers that nothing takes UDP port {ends.remote_port} (ICMP port "
                f"unreachable): no gateway runs at {peer}, it has another port, its "
                "'encapsulation' is none, or a firewall rejects it"
            )
        case What.PROTOCOL:
            return (
                f"{who} takes no ESP as IP protocol 50 (ICMP protocol unreachable): no gateway "
                f"runs at {peer}, or its 'encapsulation' is udp"
            )
        case What.PROHIBITED:
            return f"a firewall at {who} refuses our ESP packets (ICMP prohibited)"
        case _:
            return f"{who} has no way to {peer} (ICMP {error.what} unreachable)"
