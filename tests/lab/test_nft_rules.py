"""Rules as this machine's nft prints them are judged as they are written."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.demo.netns import namespaces
from esp_gw.network.filters import Passage, dropped_by
from esp_gw.network.flow import Flow

RULES = """
table inet filter {
  set lan { type ipv4_addr; flags interval; elements = { 10.1.0.0/16, 192.168.0.0-192.168.0.9 } }
  chain input {
    type filter hook input priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iif lo accept
    ip protocol icmp icmp type { echo-request, destination-unreachable } limit rate 5/second accept
    ip6 nexthdr icmpv6 accept
    tcp dport { 22, 80, 443-445 } accept
    ip saddr @lan udp dport 53 accept
    log prefix "refused " counter reject with icmpx type admin-prohibited
  }
  chain translated {
    ct status dnat accept
  }
  chain by_interface {
    iifname "lan" tcp dport 443 accept
    iifname vmap { "eth9" : drop, "lan2" : goto translated }
    return
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    jump by_interface
    iifname { "eth0", "eth1" } oifname "wg*" meta l4proto { tcp, udp } th dport 1-1024 accept
    ip saddr 10.0.0.0/8 ip daddr != 10.2.0.0/24 accept
    tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    meta mark & 0xff == 0x10 accept
  }
}
"""
PASSES, DROPPED, UNSURE = None, True, False
HERE, FAR = "10.1.0.5", "10.2.0.7"
CASES = [
    (("forward", HERE, FAR, 6, 443, "lan", "esp0"), PASSES),
    (("forward", HERE, FAR, 6, 80, "lan", "esp0"), UNSURE),
    (("forward", HERE, FAR, 17, 53, "eth0", "wg5"), PASSES),
    (("forward", HERE, FAR, None, None, "lan", "esp0"), UNSURE),
    (("forward", HERE, "10.3.0.1", None, None, "lan", "esp0"), PASSES),
    (("forward", HERE, FAR, 6, 1, "eth9", "esp0"), DROPPED),
    (("forward", HERE, FAR, 6, 1, "lan2", "esp0"), UNSURE),
    (("input", FAR, HERE, 6, 22, "esp0", ""), PASSES),
    (("input", FAR, HERE, 6, 444, "esp0", ""), PASSES),
    (("input", FAR, HERE, 6, 23, "esp0", ""), DROPPED),
    (("input", FAR, HERE, 1, None, "esp0", ""), UNSURE),
    (("input", FAR, HERE, 17, 53, "esp0", ""), UNSURE),
    (("input", "fd00::1", "fd00::2", 6, 444, "esp0", ""), PASSES),
    (("input", "fd00::1", "fd00::2", 58, None, "esp0", ""), PASSES),
    (("output", HERE, FAR, 6, 23, "", "esp0"), PASSES),
]


@pytest.fixture(scope="module")
def ruleset(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    path: Path = tmp_path_factory.mktemp("nft") / "rules"
    path.write_text(RULES)
    with namespaces("nft") as (namespace,):
        namespace.run("nft", "-f", str(path))
        listed = json.loads(namespace.run("nft", "-j", "list", "ruleset").stdout)
    entries: list[dict[str, object]] = listed["nftables"]
    return entries


@pytest.mark.parametrize(("packet", "certain"), CASES, ids=str)
def test_a_rule_of_nft_is_followed(
    ruleset: list[dict[str, object]],
    packet: tuple[str, str, str, int | None, int | None, str, str],
    certain: bool | None,
) -> None:
    hook, source, target, protocol, port, arrives, leaves = packet
    flow = Flow(ip_address(source), ip_address(target), protocol, None, port)
    found = dropped_by(ruleset, Passage(hook, flow, arrives, leaves))
    assert (None if found is None else found.certain) is certain
