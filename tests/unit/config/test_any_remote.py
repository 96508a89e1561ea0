"""`remote: any` in the configuration: what it expands to, and what can't go with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.config_files import TUNNEL, load, only_fault, transport

ANYWHERE = TUNNEL.replace("remote: 192.0.2.2", "remote: any")
V6 = ANYWHERE.replace("192.0.2.1", "2001:db8::1")


@pytest.mark.parametrize(("text", "nowhere"), [(ANYWHERE, "0.0.0.0"), (V6, "::")])
@pytest.mark.parametrize("way", ["udp", "none"])
def test_the_peer_has_the_family_of_local_and_no_address(
    folder: Path, text: str, nowhere: str, way: str
) -> None:
    wanted = load(folder, f"{text}    encapsulation: {way}\n")
    assert {str(sa.remote) for sa in wanted.sas} == {nowhere}
    assert all(sa.learns_peer and sa.follows_peer for sa in wanted.sas)
    (tunnel,) = wanted.tunnels
    assert tunnel.learns_peer
    assert (str(tunnel.remote), tunnel.remote_name) == (nowhere, None)


def test_a_name_and_an_address_are_not_learned(folder: Path) -> None:
    for remote in ("gw.example", "192.0.2.7", "any.example", "anyone"):
        wanted = load(folder, TUNNEL.replace("192.0.2.2", remote))
        assert not any(sa.learns_peer for sa in wanted.sas), remote


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            ANYWHERE.replace("192.0.2.1", "auto"),
            "tunnels.b.remote: any needs a written local address",
        ),
        (
            f"{ANYWHERE}    remote_port: 4501\n",
            "tunnels.b.remote_port: is learned with the address of remote: any",
        ),
        (
            transport().replace("remote: 192.0.2.2", "remote: any"),
            "tunnels.b.remote: transport mode protects one address: write it instead of any",
        ),
        (TUNNEL.replace("local: 192.0.2.1", "local: any"), "tunnels.b.local: expected an IPv4"),
        (TUNNEL.replace("192.0.2.2", "auto"), "tunnels.b.remote: auto is for local"),
        (TUNNEL.replace("192.0.2.2", "'any '"), "tunnels.b.remote: expected an IPv4"),
        (TUNNEL.replace("192.0.2.2", "[any]"), "tunnels.b.remote: expected an IPv4"),
    ],
)
def test_what_can_not_go_with_it_is_one_fault(folder: Path, text: str, words: str) -> None:
    assert words in only_fault(folder, text)
