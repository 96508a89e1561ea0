"""Every reason of a drop has words: what packets, the usual cause."""

from __future__ import annotations

from esp_gw.health.reasons import MEANINGS
from esp_gw.model import DropReason
from esp_gw.network.firewall import FirewallDrop
from esp_gw.network.link import TUN_OVERFLOW


def test_every_reason_of_a_drop_has_a_meaning_and_a_cause() -> None:
    assert list(MEANINGS) == [*DropReason, TUN_OVERFLOW, *FirewallDrop]
    assert all(each.packets and each.cause for each in MEANINGS.values())
