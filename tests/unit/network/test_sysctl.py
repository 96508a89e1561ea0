"""Warnings about kernel settings that keep a tunnel from working."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.desired import Desired, GatewaySettings
from esp_gw.model import DEFAULT_SUITE, Encapsulation, Mode, Tunnel
from esp_gw.network.sysctl import network_warnings

LOCAL, REMOTE = "192.0.2.1", "192.0.2.2"


def warnings(root: Path, tunnel: Tunnel) -> list[str]:
    return network_warnings(Desired(GatewaySettings(), (tunnel,)), "esp0", root)


def tunnel(
    local_ts: str, remote_ts: str, *, mode: Mode = Mode.TUNNEL, outer: tuple[str, str] | None = None
) -> Tunnel:
    local, remote = map(ip_address, outer or (LOCAL, REMOTE))
    prefixes = (ip_network(local_ts),), (ip_network(remote_ts),)
    encapsulation = Encapsulation.UDP
    return Tunnel("t", mode, encapsulation, DEFAULT_SUITE, local, remote, *prefixes, (), ())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return settings of a kernel that forwards and accepts any source."""
    values = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
    values |= {f"ipv4/conf/{name}/rp_filter": 0 for name in ("all", "eth0", "esp0", "lo")}
    for name, value in values.items():
        write(tmp_path, name, value)
    return tmp_path


def write(root: Path, name: str, value: int) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("net", "name"), [("10.1.0.0/24", "ipv4/ip_forward"), ("fd00::/64", "ipv6/conf/all/forwarding")]
)
def test_a_network_behind_needs_forwarding_of_its_family(root: Path, net: str, name: str) -> None:
    joined = tunnel(net, net)
    assert warnings(root, joined) == []
    write(root, name, 0)
    (text,) = warnings(root, joined)
    assert text.endswith(f"run 'sysctl -w net.{name.replace('/', '.')}=1'")
    assert warnings(root, tunnel("10.1.0.1/32", "10.2.0.0/24")) == []


TRANSPORT = tunnel(f"{LOCAL}/32", f"{REMOTE}/32", mode=Mode.TRANSPORT)
OVER_IPV6 = ("2001:db8::1", "2001:db8::2")


@pytest.mark.parametrize(
    ("wanted", "warned"),
    [
        (TRANSPORT, True),
        (tunnel("10.1.0.0/24", "192.0.0.0/8"), True),
        (tunnel("0.0.0.0/0", "0.0.0.0/0"), True),
        (tunnel("10.1.0.0/24", "0.0.0.0/0"), False),
        (tunnel("10.1.0.0/24", "10.2.0.0/24"), False),
        (tunnel("::/0", "::/0", outer=OVER_IPV6), False),
        (tunnel("::1/128", "::2/128", mode=Mode.TRANSPORT, outer=("::1", "::2")), False),
    ],
)
def test_strict_rp_filter_is_reported_if_the_reverse_path_to_the_peer_is_the_tunnel(
    root: Path, wanted: Tunnel, warned: bool
) -> None:
    write(root, "ipv4/conf/eth0/rp_filter", 1)
    texts = warnings(root, wanted)
    assert [text.startswith("rp_filter is strict on eth0: ") for text in texts] == [True] * warned


@pytest.mark.parametrize(
    ("everywhere", "device", "name", "strict"),
    [(1, 0, "eth0", True), (2, 1, "eth0", False), (0, 2, "eth0", False), (0, 1, "esp0", False)],
)
def test_the_larger_of_two_settings_counts_on_devices_other_than_ours(
    root: Path, everywhere: int, device: int, name: str, strict: bool
) -> None:
    write(root, "ipv4/conf/all/rp_filter", everywhere)
    write(root, f"ipv4/conf/{name}/rp_filter", device)
    assert bool(warnings(root, TRANSPORT)) is strict
