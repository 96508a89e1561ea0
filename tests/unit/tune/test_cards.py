"""The cards on the way to peers: those below bridges and VLANs, and never the TUN itself."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.model import IPAddress
from esp_gw.network.route_lookup import Way
from esp_gw.tune import cards
from esp_gw.tune.cards import outgoing_cards

PEER, OTHER, INSIDE, OWN = (ip_address(f"198.51.100.{number}") for number in range(1, 5))
WAYS = {
    PEER: Way(device="br0"),
    OTHER: Way(device="wlan0"),
    INSIDE: Way(device="esp0"),
    OWN: Way(device="lo", is_local=True),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def way_to(_messages: object, peer: IPAddress) -> Way:
        return WAYS.get(peer, Way(error=101))

    monkeypatch.setattr(cards, "way_to", way_to)
    for link in ("br0/lower_eth1", "br0/lower_bond0", "bond0/lower_eth2", "bond0/lower_eth3"):
        path = tmp_path / "sys/class/net" / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "proc/net").mkdir(parents=True)
    return tmp_path


def test_a_bridge_stands_for_the_cards_below_it(root: Path) -> None:
    assert outgoing_cards([PEER, OTHER, PEER], "esp0", root) == ["eth2", "eth3", "eth1", "wlan0"]


IPV4 = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth9	00000000	010200C0	0003	0	0	0	00000000	0	0	0
eth8	00000000	00000000	0001	0	0	0	00FFFFFF	0	0	0
esp0	00000000	00000000	0001	0	0	0	00000000	0	0	0
eth7	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
"""
IPV6 = f"""\
{"0" * 32} 00 {"0" * 32} 00 fe800000000000000000000000000001 00000400 1 0 00000003 br0
{"0" * 32} 00 {"0" * 32} 00 {"0" * 32} ffffffff 1 0 00200200 lo
{"0" * 32} 40 {"0" * 32} 00 {"0" * 32} 00000100 1 0 00000001 eth6
"""


def test_without_a_peer_on_the_way_it_is_the_default_routes(root: Path) -> None:
    assert outgoing_cards([], "esp0", root) == []
    (root / "proc/net/route").write_text(IPV4)
    for peers in ([], [INSIDE], [OWN], [ip_address("0.0.0.0")]):
        assert outgoing_cards(peers, "esp0", root) == ["eth9"]
    (root / "proc/net/ipv6_route").write_text(IPV6)
    assert outgoing_cards([], "esp0", root) == ["eth9", "eth2", "eth3", "eth1"]
    (root / "proc/net/route").write_text("nonsense\n" * 3)
    assert outgoing_cards([], "esp0", root) == ["eth2", "eth3", "eth1"]


def test_a_circle_of_interfaces_ends(root: Path) -> None:
    (root / "sys/class/net/eth1").mkdir()
    (root / "sys/class/net/eth1/lower_br0").touch()
    assert set(outgoing_cards([PEER], "esp0", root)) >= {"eth2", "eth3"}


def test_the_way_of_this_machine_is_one_of_its_interfaces() -> None:
    found = outgoing_cards([], "esp0", Path("/"))
    assert all((Path("/sys/class/net") / name).exists() for name in found)
