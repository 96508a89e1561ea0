"""Path MTUs that were reported, and the paths that grow again."""

from __future__ import annotations

from ipaddress import ip_address

from esp_gw.daemon.paths import LIFETIME, PathMtus

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
