"""The original addresses of transport mode are asked for where a NAT is certain."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from esp_gw.config.nat import needs_local_original, needs_remote_original
from esp_gw.model import Direction, Encapsulation, Mode, Sa
from tests.support.builders import make_sa

PRIVATE = {4: "10.0.0.2", 6: "fd00::2"}
PUBLIC = {4: "198.51.100.7", 6: "2001:db8::7"}


def inbound(local: str, remote: str, **fields: Any) -> Sa:
    sa = make_sa("t/in", Direction.INBOUND, mode=Mode.TRANSPORT, local=local, remote=remote)
    return replace(sa, tunnel="t", **fields)


@pytest.mark.parametrize("version", [4, 6])
def test_a_private_address_and_a_public_one_have_a_nat_between(version: int) -> None:
    private, public = PRIVATE[version], PUBLIC[version]
    text = needs_local_original(inbound(private, public))
    assert text == (
        f"a NAT is between {private}, a private address, and {public}, and breaks the checksums of "
        "TCP and UDP in transport mode: write 'local_original', the address that the peer has in "
        f"'remote', or {private} if there is no NAT"
    )
    for local, remote in ((public, private), (private, private), (public, public)):
        other = str(ip_address(remote) + 1)
        assert needs_local_original(inbound(local, other)) is None
    given = ip_address(private)
    assert needs_local_original(inbound(private, public, local_original=given)) is None


@pytest.mark.parametrize(
    "change", [{"mode": Mode.TUNNEL}, {"encapsulation": Encapsulation.NONE}], ids=str
)
def test_tunnel_mode_and_protocol_50_need_none(change: dict[str, Any]) -> None:
    sa = inbound(PRIVATE[4], PUBLIC[4], **change)
    assert needs_local_original(sa) is None
    assert not list(needs_remote_original([(sa, sa.remote, 61000)]))


def test_a_peer_at_another_port_is_behind_a_nat_and_each_tunnel_is_named_once() -> None:
    sa = inbound("203.0.113.2", PUBLIC[4])
    second = replace(sa, name="t/in.2")
    (text,) = needs_remote_original([(each, sa.remote, 61000) for each in (sa, second)])
    assert text == (
        "tunnel t: a NAT is between, for the peer sends from 198.51.100.7 port 61000, not "
        "198.51.100.7 port 4500, and breaks the checksums of TCP and UDP in transport mode: write "
        "'remote_original', the address that the peer has in 'local'"
    )
    (text,) = needs_remote_original([(replace(sa, tunnel=None), sa.remote, 61000)])
    assert text.startswith("SA t/in: ")


def test_a_peer_that_has_moved_is_asked_about_unless_its_own_address_is_known() -> None:
    moved = ip_address("198.51.100.99")
    public, private = inbound("203.0.113.2", PUBLIC[4]), inbound("203.0.113.2", PRIVATE[4])
    given = replace(public, remote_original=ip_address(PRIVATE[4]))
    asked = [
        len(list(needs_remote_original([(sa, moved, 4500)]))) for sa in (public, private, given)
    ]
    assert asked == [1, 0, 0]
    assert not list(needs_remote_original([(public, public.remote, 4500)]))
