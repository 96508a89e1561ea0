"""The last refused packet of each reason is kept in words, for its tunnel or for none."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from esp_gw.model import DropReason
from tests.support.tunnel_life import IN, TunnelLife, inner, outer


def test_an_outer_packet_is_kept_with_its_source_and_spi() -> None:
    life = TunnelLife()
    sample = replace(outer(DropReason.AUTH_FAILED, IN.spi), sa="t/in")
    life.second(refused=[sample])
    assert life.watched.refused == {"auth-failed": "from 192.0.2.2 port 4500, SPI 0x00001002"}
    life.second(refused=[replace(sample, source=ip_address("192.0.2.9"), source_port=0)])
    assert life.watched.refused == {"auth-failed": "from 192.0.2.9, SPI 0x00001002"}
    assert life.roster.strays == {}


def test_a_packet_that_no_sa_counts_is_kept_apart() -> None:
    life = TunnelLife()
    life.second(
        refused=[
            outer(DropReason.UNKNOWN_SPI, 0x9000),
            inner(DropReason.NO_POLICY, "10.1.0.5", "224.0.0.251"),
            inner(DropReason.NO_POLICY, "10.9.0.5", "10.2.0.7"),
        ]
    )
    assert life.roster.strays == {
        "unknown-spi": "from 192.0.2.2 port 4500, SPI 0x00009000",
        "no-policy": "10.9.0.5 to 10.2.0.7",
    }
    # Packets for its networks explain a loss of the tunnel.
    assert life.watched.refused == {"no-policy": "10.9.0.5 to 10.2.0.7"}
