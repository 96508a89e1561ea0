"""A NAT in front of a gateway changes its mapping, and only the far side has anything to send."""

from __future__ import annotations

from esp_gw.demo.netns import Namespace, add_address
from tests.support.labtools import MakePair, edit, ping, tunnel, until

OUTSIDE = "192.0.2.3"
OLD, NEW = 34567, 34999


def translate(gateway: Namespace, port: int) -> None:
    """Translate what leaves the gateway to a port outside, and let nothing in by another one.

    What is for a former port is dropped, as a router drops it. A checksum of zero stays zero, which
    nft would update.
    """
    gateway.run("sh", "-c", "nft delete table ip nat 2>/dev/null || true")
    gateway.run(
        "nft",
        f"""
        table ip nat {{
            chain out {{
                type filter hook output priority -300
                ip saddr 192.0.2.2 udp sport 4500 ip saddr set {OUTSIDE} \\
                    udp sport set {port} udp checksum set 0
            }}
            chain in {{
                type filter hook prerouting priority -300
                ip daddr {OUTSIDE} udp dport {port} ip daddr set 192.0.2.2 udp dport set 4500 \\
                    udp checksum set 0 accept
                udp dport {{ 4500, {OLD}, {NEW} }} drop
            }}
        }}
        """,
    )


def test_a_mapping_that_changes_is_found_by_the_keepalives_of_the_idle_side(
    make_pair: MakePair,
) -> None:
    pair = make_pair(liveness=1)
    edit(pair.a, lambda config: tunnel(config).update(remote=OUTSIDE, remote_port=OLD))
    add_address(pair.b.namespace, f"{OUTSIDE}/24")
    translate(pair.b.namespace, OLD)
    pair.start()
    assert ping(pair.a.namespace, "10.2.0.1", count=3) == 3
    translate(pair.b.namespace, NEW)
    assert ping(pair.a.namespace, "10.2.0.1", count=1) == 0
    # Nothing reaches b until a follows: it has nothing to send but authentic keepalives.
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer by the new mapping")
    (entry,) = pair.a.call("ListTunnels")["tunnels"]
    assert (entry["remote"], entry["remote_port"]) == (OUTSIDE, NEW)
