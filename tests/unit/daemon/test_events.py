"""The stream of an owner's events: bounded, in order, and honest about what did not fit."""

from __future__ import annotations

import asyncio

import pytest

from esp_gw.daemon import events
from esp_gw.daemon.events import EventStream


async def drained(stream: EventStream) -> list[dict[str, object]]:
    found = []
    while stream._waiting:
        found.append(await stream.next())
    return found


async def test_what_does_not_fit_is_counted_at_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 3)
    stream = EventStream()
    for number in range(6):
        stream.put({"event": "E", "number": number})
    first = await stream.next()
    # There is room again, behind what was lost.
    stream.put({"event": "E", "number": 6})
    rest = await drained(stream)
    assert [first, *rest][:4] == [
        *({"event": "E", "number": number} for number in range(3)),
        {"event": "Lost", "count": 4},
    ]
    stream.put({"event": "E", "number": 7})
    assert await drained(stream) == [{"event": "E", "number": 7}]


async def test_an_event_wakes_the_one_that_waits() -> None:
    stream = EventStream()
    waiting = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.put({"event": "E"})
    assert await asyncio.wait_for(waiting, 10) == {"event": "E"}
