"""Routing beside that of others: a network of our own, neighbours, and what others remove."""

from __future__ import annotations

from collections.abc import Callable

from labtools import MakePair, edit, network, site_host, tunnel

from esp_gw.lab.netns import namespaces
from esp_gw.lab.tap import Tap
from esp_gw.lab.traffic import ping

StartTap = Callable[..., Tap]


def test_a_spoke_that_protects_a_wide_prefix_reaches_its_own_network(
    make_pair: MakePair, tap: StartTap
) -> None:
    """Hub and spoke: 10.1.0.0/24 here, all of 10.0.0.0/8 over there."""
    pair = make_pair(inner_versions=(4, 6))
    edit(pair.a, lambda config: tunnel(config).update(remote_ts=["10.0.0.0/8", "fd00::/16"]))
    edit(pair.b, lambda config: tunnel(config).update(local_ts=["10.0.0.0/8", "fd00::/16"]))
    host = pair.a.namespace
    host.ip("route", "add", "default", "via", "192.0.2.2")
    with namespaces("host-a") as (lan,):
        site_host(lan, host, 1)
        before = network(host)
        pair.start()
        wire = tap(host)
        for near, far in (("10.1.0.10", "10.2.0.1"), ("fd00:1::10", "fd00:2::1")):
            assert ping(host, near, count=2).received == 2, near
            assert ping(host, far, count=2).received == 2, far
        assert pair.a.ask("reload")["changes"] == []
        pair.a.kill()
        assert ping(host, "10.1.0.10", count=1).received == 1
        assert ping(host, "10.2.0.1", count=1).received == 0
        pair.a.start()
        pair.a.stop()
        assert network(host) == before
        report = wire.finish()
        assert report.cleartext == 0, report.examples
