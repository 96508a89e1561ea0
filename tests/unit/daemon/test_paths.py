"""Path MTUs that were reported, and the paths that grow again."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from esp_gw.daemon.paths import LIFETIME, PathMtus
from esp_gw.model import IPAddress

PEER = ip_address("192.0.2.2")


def test_a_report_is_looked_up_again_each_minute_until_the_path_has_grown() -> None:
    paths = PathMtus()
    assert paths.look_up(PEER, 1500, 0) == 1500
    assert paths.report(PEER, 1300, 0)
    # The kernel forgets it after ten minutes, or earlier if a person says so.
    now = 0.0
    for kernels in (1300, 1300, 1300):
        assert paths.look_up(PEER, kernels, now) == 1300
        assert paths.next_expiry == now + LIFETIME == now + 60
        now += LIFETIME
        paths.expire(now)
    assert paths.look_up(PEER, 1500, now) == 1500
    assert paths.next_expiry is None
    assert paths.report(PEER, 1300, now)


def test_a_report_that_was_not_looked_up_for_want_of_a_route_is_not_forgotten() -> None:
    paths = PathMtus()
    paths.look_up(PEER, 1500, 0)
    paths.report(PEER, 1300, 0)
    assert paths.look_up(PEER, 1300, 1) == 1300
    paths.expire(LIFETIME)
    assert paths.look_up(PEER, None, LIFETIME) == 1300
    assert paths.next_expiry == 2 * LIFETIME


def test_only_new_peers_are_asked_for_until_there_is_a_doubt() -> None:
    asked: list[str] = []
    mtus = {"192.0.2.1": 1500, "192.0.2.2": 1400, "192.0.2.3": 1300}

    async def ask(remote: IPAddress) -> int | None:
        asked.append(str(remote))
        return mtus[str(remote)]

    def peers(*numbers: int) -> frozenset[IPAddress]:
        return frozenset(ip_address(f"192.0.2.{number}") for number in numbers)

    async def live() -> None:
        paths = PathMtus()

        async def look(*numbers: int) -> list[int]:
            found = await paths.look_up_all(peers(*numbers), 1280, ask)
            assert found.keys() == peers(*numbers)
            return sorted(found.values())

        assert await look(1, 2) == [1400, 1500]
        assert await look(1, 2, 3) == [1300, 1400, 1500]
        assert await look(2) == [1400]
        assert (asked, paths.changes) == (["192.0.2.1", "192.0.2.2", "192.0.2.3"], 0)
        # One that was gone is asked for again.
        assert await look(1, 2) == [1400, 1500]
        assert asked[3:] == ["192.0.2.1"]
        paths.doubt()
        assert await look(1, 2) == [1400, 1500]
        assert (asked[4:], paths.changes) == (["192.0.2.1", "192.0.2.2"], 0)
        mtus["192.0.2.1"] = 1100
        paths.doubt()
        assert await look(1, 2) == [1280, 1400]
        assert paths.changes == 1
        paths.report(PEER, 1290, 0)
        assert await look(1, 2) == [1280, 1290]
        assert paths.changes == 2

    asyncio.run(live())
