"""Packets that two gateways have not carried, by their own counters."""

from __future__ import annotations

from collections.abc import Sequence

from esp_gw.demo.gateways import LabGateway
from esp_gw.model import DropReason

_UNSEALED = (
    *(DropReason.NO_SA, DropReason.NO_PEER, DropReason.LEASE_EXHAUSTED),
    *(DropReason.SEQ_EXHAUSTED, DropReason.QUEUE_FULL, DropReason.QUEUE_TIMEOUT),
    DropReason.SEND_ERROR,
)
_NOT_OF_KEYS = (DropReason.SOCKET_OVERFLOW, DropReason.REPLAY_OLD)
"""Reasons of a busy machine: the kernel's buffer was full, a worker came too late."""


def count_lost(gateways: Sequence[LabGateway]) -> int:
    """Packets since the start that were not sealed, or sealed and not received.

    Those that are on their way count, too; what only a busy machine loses does not.
    """
    stats = [gateway.call("GetStats") for gateway in gateways]

    def dropped(reasons: Sequence[DropReason]) -> int:
        return sum(int(each["drops"].get(reason, 0)) for each in stats for reason in reasons)

    sealed = sum(int(each["packets_out"]) for each in stats)
    received = sum(int(each["packets_in"]) for each in stats)
    return sealed + dropped(_UNSEALED) - received - dropped(_NOT_OF_KEYS)
