"""The planned packet filter: which packets out of the TUN may go back into it."""

from __future__ import annotations

from ipaddress import ip_address

from esp_gw.desired import GatewaySettings
from esp_gw.model import Policy
from esp_gw.network.firewall import plan_firewall
from tests.support.builders import discard, protect, selector


def loops(source: str, destination: str, *policies: Policy) -> bool:
    """Return True if the filter drops a packet that comes out of the TUN and goes into it."""
    firewall = plan_firewall(GatewaySettings(), policies, ())
    assert firewall is not None
    return all(
        any(
            part.first.version == address.version and part.first <= address <= part.last
            for part in firewall.mirrored
        )
        for address in map(ip_address, (source, destination))
    )


def test_what_is_behind_both_ends_does_not_go_back() -> None:
    for prefix, one, other in (
        ("0.0.0.0/0", "10.1.0.1", "8.8.8.8"),
        ("::/0", "fd00:1::1", "2001:db8::1"),
        ("10.0.0.0/8", "10.1.0.1", "10.2.0.1"),
    ):
        policy = protect("t", "t/out", selector(prefix, prefix))
        assert loops(one, other, policy)
    assert not loops("10.1.0.1", "11.0.0.1", policy)


def test_what_one_tunnel_brings_goes_on_by_another() -> None:
    everything = protect("up", "up/out", selector("0.0.0.0/0", "0.0.0.0/0"))
    branch = protect("branch", "branch/out", selector("0.0.0.0/0", "10.3.0.0/24"))
    assert not loops("10.3.0.5", "8.8.8.8", branch, everything)
    assert not loops("8.8.8.8", "10.3.0.5", branch, everything)
    assert loops("8.8.8.8", "8.8.4.4", branch, everything)


def test_spokes_reach_each_other_by_a_hub_whose_prefix_holds_theirs() -> None:
    spokes = [protect(f"s{n}", "s/out", selector("10.0.0.0/8", f"10.{n}.0.0/16")) for n in (1, 2)]
    rest = discard("rest", selector("0.0.0.0/0", "0.0.0.0/0"))
    assert not loops("10.1.0.5", "10.2.0.5", *spokes, rest)
