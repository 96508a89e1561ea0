"""The TUN device belongs to the gateway alone, or there is no device.

Any user can open a queue of a device that has no owner, and a device gets its owner a moment after
it is made. A program with a queue reads what is to be protected, and what it writes is taken for
what came out of an SA.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from esp_gw.desired import EngineSettings
from esp_gw.engine.base import Engine, Event
from esp_gw.errors import EngineError, EspGwError
from esp_gw.logs import log
from esp_gw.network.kernel import KernelNetwork

TRIES = 5
"""Devices that are made before a start is refused because others were faster each time."""

_ADVICE = (
    "'fuser -v /dev/net/tun' as root shows which one: end it, or let the gateway's group alone "
    "open /dev/net/tun"
)


async def open_alone(
    engine: Engine,
    kernel: KernelNetwork,
    settings: EngineSettings,
    on_event: Callable[[Event], None],
) -> None:
    """Open and start the engine on a TUN device of which no other program has a queue.

    The device is down and has no address. Raises EspGwError; then there is none.
    """
    for _ in range(TRIES):
        engine.open(settings, on_event)
        try:
            if not await evict(engine, kernel, settings.interface, log.warning):
                await _start(engine, kernel, settings.interface)
                return
        except EspGwError:
            engine.close()
            raise
        engine.close()
    raise EngineError(
        f"another program opened the TUN device each of the {TRIES} times that it was made",
        where=settings.interface,
        hint=_ADVICE,
    )


async def evict(
    engine: Engine, kernel: KernelNetwork, interface: str, tell: Callable[[str], None]
) -> bool:
    """Delete the TUN device if it is not the engine's alone; return True in that case.

    Closing the engine's queues would leave the device to the others. `tell` gets the reason first,
    before the engine reports that its device is gone. Raises NetworkError.
    """
    found = await kernel.tun_queues(interface)
    fault = found.fault(engine.queues)
    if fault is None:
        return False
    tell(f"another program opened the TUN device, which is deleted: {fault}")
    # Whoever was told may cancel this task.
    await asyncio.shield(kernel.delete_link(found.index))
    return True


async def _start(engine: Engine, kernel: KernelNetwork, interface: str) -> None:
    engine.start()
    # Since the device has an owner, this takes CAP_NET_ADMIN.
    if await evict(engine, kernel, interface, log.warning):
        raise EngineError(
            "another program opened the TUN device while it was made", where=interface, hint=_ADVICE
        )
