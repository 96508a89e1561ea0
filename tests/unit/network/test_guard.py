"""Prefixes that a gateway has left closed, told from the kernel's network."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from esp_gw.desired import Desired, GatewaySettings
from esp_gw.model import Action, Origin, Selector
from esp_gw.network.guard import beyond, left_closed
from esp_gw.network.objects import Host
from esp_gw.network.plan import plan_guard
from tests.support.builders import bypass, discard, protect, selector

HOST = Host(frozenset({ip_address("10.1.0.1")}), frozenset({ip_network("10.1.0.0/24")}))
OWN = protect("own", "own/out", selector("10.1.0.0/24", "10.2.0.0/16"))
IKES = (
    bypass("ike:lan", selector("10.1.0.0/24", "10.4.1.0/24")),
    protect("ike:net", "ike:00000100/out", selector("10.1.0.0/24", "10.4.0.0/16")),
    discard("ike:no", selector("fd00:1::/64", "fd00:9::/64")),
    protect("ike:rest", "ike:00000101/out", selector("10.1.0.0/25", "0.0.0.0/0")),
    protect("ike:all", "ike:00000102/out", selector("::/0", "::/0")),
)


def state(*policies: object) -> Desired:
    return Desired(GatewaySettings(), policies=policies)  # type: ignore[arg-type]


def test_what_ike_closed_is_found_with_the_sources_of_a_default_route() -> None:
    left = left_closed(plan_guard(state(OWN, *IKES), HOST), state(OWN))
    assert {pair for each in left for pair in each.selectors} == {
        selector("0.0.0.0/0", "10.4.0.0/16"),
        selector("::/0", "fd00:9::/64"),
        Selector(ip_network("10.1.0.0/25"), ip_network("0.0.0.0/0")),
        selector("::/0", "::/0"),
    }
    assert {(each.action, each.origin) for each in left} == {(Action.PROTECT, Origin.IKE)}
    # They close the same again.
    again = plan_guard(state(OWN, *left), HOST)
    assert again.routes == plan_guard(state(OWN, *IKES), HOST).routes


def test_nothing_is_left_of_what_is_known() -> None:
    network = plan_guard(state(OWN, *IKES), HOST)
    assert left_closed(network, state(OWN, *IKES)) == ()
    left = left_closed(network, state(OWN))
    assert beyond(left, [discard("new", selector("10.7.0.0/16", "10.4.0.0/16"))]) == tuple(
        each for each in left if each.selectors[0].remote != ip_network("10.4.0.0/16")
    )
    # A bypass closes nothing, and a default route is closed for its sources alone.
    others = [bypass("b", *(pair for each in left for pair in each.selectors))]
    others.append(protect("c", "c/out", selector("10.1.0.128/25", "0.0.0.0/0")))
    assert beyond(left, others) == left
