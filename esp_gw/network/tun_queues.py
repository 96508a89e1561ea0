"""The queues of a TUN device as the kernel counts them, and who may open more of them.

A detached queue is in no file of sysfs and reads nothing, but the kernel receives what is written
to it, and its holder can attach it again.

Source: tun_fill_info in drivers/net/tun.c of Linux.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esp_gw.network.link import GET_LINK

ROOT = 0
"""The user to whom the gateway's device belongs; the service's own processes need a capability."""


@dataclass(frozen=True, slots=True)
class TunQueues:
    """The state of the TUN device `index`; `count` has attached and detached queues.

    Without an `owner` any user may open a queue. A `persistent` device outlives its queues.
    """

    index: int
    count: int
    owner: int | None
    persistent: bool

    def fault(self, opened: int) -> str | None:
        """Return in words what others did to a device of which the gateway opened some queues."""
        if self.count != opened:
            return f"it has {self.count} queues, of which the gateway opened {opened}"
        if self.owner != ROOT:
            return f"it belongs to {'nobody' if self.owner is None else f'user {self.owner}'}"
        return "it was made persistent" if self.persistent else None


async def read_tun_queues(ipr: Any, interface: str, index: int) -> TunQueues:
    """Return the queues of the TUN device `index`, or of `interface` if the index is 0.

    Raises NetlinkError.
    """
    which = {"index": index} if index else {"ifname": interface}
    return _read((await ipr.link(GET_LINK, **which))[0])


async def delete_link(ipr: Any, index: int) -> None:
    """Delete a device, whoever holds it. Raises NetlinkError."""
    await ipr.link("del", index=index)


def _read(link: Any) -> TunQueues:
    data = link.get_nested("linkinfo", "data")
    many = data.get("tun_multi_queue")
    # Of a device with a single queue the kernel counts none.
    count = data.get("tun_num_queues") + data.get("tun_num_disabled_queues") if many else 1
    return TunQueues(link["index"], count, data.get("tun_owner"), bool(data.get("tun_persist")))
