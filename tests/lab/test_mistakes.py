"""The commonest mistakes, each made on purpose: the right cause is named first.

Many mistakes share a pair of gateways, each in a tunnel with outer addresses of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, end, namespaces
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import (
    MakePair,
    edit,
    forwarding,
    ping,
    site_host,
    start_pings,
    tunnel,
    until,
    write_key,
)

pytestmark = pytest.mark.either_engine

LIVENESS = 2
SOON = 30.0
"""Seconds within which a cause is named: a state takes up to ten, a loaded machine more."""

Fields = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A tunnel with a mistake: the changes of its two sides, and what one side says of it."""

    text: str
    by: str = "b"
    a: Callable[[Fields], object] = lambda fields: None
    b: Callable[[Fields], object] = lambda fields: None
    verdict: str | None = None
    """Verdict of b's packet filter on the tunnel's packets."""


def other_key(fields: Fields) -> None:
    key = fields["inbound"]["key"]["file"]
    fields["inbound"]["key"]["file"] = key.replace(".key", ".other.key")


def swapped_spis(fields: Fields) -> None:
    ours, theirs = fields["outbound"], fields["inbound"]
    ours["spi"], theirs["spi"] = theirs["spi"], ours["spi"]


def foreign_spi(fields: Fields) -> None:
    fields["inbound"]["spi"] = 0x7777


def more_networks(fields: Fields) -> None:
    fields["remote_ts"] = [fields["remote_ts"], "10.99.0.0/24"]


KEY = "the key, the suite (with its ICV) or ESN differ"
MISTAKES = {
    "key": Mistake(KEY, b=other_key),
    "esn": Mistake(KEY, b=lambda fields: fields.update(esn=False)),
    "icv": Mistake(KEY, b=lambda fields: fields.update(suite="aes256gcm8")),
    "longer": Mistake(KEY, by="a", b=lambda fields: fields.update(suite="aes256gcm8")),
    "swap": Mistake("which is the SPI of our outbound SA", b=swapped_spis),
    "spi": Mistake("SPIs of no SA here (0x", b=foreign_spi),
    "raw": Mistake(
        "takes no ESP as IP protocol 50", b=lambda fields: fields.update(encapsulation="none")
    ),
    "udp": Mistake(
        "nothing takes UDP port 4500", "a", b=lambda fields: fields.update(encapsulation="none")
    ),
    "drop": Mistake("something on the way drops UDP port 4500", verdict="drop"),
    "closed": Mistake("a firewall rejects it", "a", verdict="reject with icmp port-unreachable"),
    "refused": Mistake("refuses our ESP packets", "a", verdict="reject with icmp admin-prohibited"),
    "mirror": Mistake("to 10.99.0.1): its local_ts and remote_ts", a=more_networks),
    "source": Mistake("source outside of local_ts (172.17.0.2 to 10.2", "a"),
    "gone": Mistake("is on no interface", "a"),
}


def outer(side: int, name: str) -> str:
    number = list(MISTAKES).index(name) + 1
    return f"192.0.2.{100 * (side + 1) + number}"


def inner(side: int, name: str) -> str:
    number = list(MISTAKES).index(name) + 1
    return f"10.{100 * (side + 1) + number}.0.1"


def make(pair: GatewayPair, mistakes: dict[str, Mistake]) -> None:
    """Configure a tunnel for each mistake, with its own outer addresses and networks."""
    for number, (name, mistake) in enumerate(mistakes.items()):
        keys = [write_key(pair.a.folder / f"{name}{end}.key") for end in (0, 1)]
        for key in keys:
            write_key(key.with_name(key.name.replace(".key", ".other.key")))
        for side, (gateway, change) in enumerate(((pair.a, mistake.a), (pair.b, mistake.b))):
            add_address(gateway.namespace, f"{outer(side, name)}/24")
            add_address(gateway.namespace, f"{inner(side, name)}/32", "lo")
            ends = [
                {"spi": 0x2000 + 16 * number + way, "key": {"file": str(keys[way])}}
                for way in (side, 1 - side)
            ]
            fields: Fields = {
                "local": outer(side, name),
                "remote": outer(1 - side, name),
                "local_ts": inner(side, name).removesuffix("1") + "0/24",
                "remote_ts": inner(1 - side, name).removesuffix("1") + "0/24",
                "liveness": LIVENESS,
                "outbound": ends[0],
                "inbound": ends[1],
            }
            change(fields)
            edit(gateway, lambda config, n=name, f=fields: config["tunnels"].update({n: f}))
        if mistake.verdict is not None:
            rule = f"ip daddr {outer(1, name)} udp dport 4500 {mistake.verdict}"
            pair.b.namespace.run("nft", f"add rule ip t c {rule}")
            if mistake.by == "a":
                # Nothing authentic comes back.
                rule = f"ip saddr {outer(1, name)} udp sport 4500 drop"
                pair.b.namespace.run("nft", f"add rule ip t o {rule}")


@contextlib.contextmanager
def pinging(namespace: Namespace, target: str, source: str = "") -> Iterator[None]:
    """Send an echo request each half second during the block."""
    ping = f"ping -q -c 1 -W 0.3 {f'-I {source}' if source else ''} {target}"
    process = namespace.start("sh", "-c", f"while :; do {ping}; sleep 0.3; done")
    try:
        yield
    finally:
        end(process)


def causes(gateway: LabGateway) -> dict[str, str]:
    """Return the likeliest cause of each tunnel that has one."""
    tunnels = gateway.call("ListTunnels")["tunnels"]
    return {each["name"]: each["causes"][0] for each in tunnels if each["causes"]}


def states(gateway: LabGateway) -> dict[str, str]:
    return {each["name"]: each["state"] for each in gateway.call("ListTunnels")["tunnels"]}


def says(gateway: LabGateway, text: str) -> None:
    """Wait until `status` has a text in its first warning, and an exit status of 1."""

    def first() -> bool:
        warnings = gateway.call("GetStatus")["warnings"]
        return bool(warnings) and text in warnings[0]

    until(first, f"{text!r} as the first warning", SOON)
    done = gateway.cli("status", check=False)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if "warning:" in line)
    assert text in line


def test_each_mistake_is_named_by_the_end_that_can_see_it(make_pair: MakePair) -> None:
    pair = make_pair(liveness=LIVENESS)
    pair.b.namespace.run("nft", "add table ip t")
    for chain, hook in (("c", "input"), ("o", "output")):
        pair.b.namespace.run(
            "nft", f"add chain ip t {chain} {{type filter hook {hook} priority 0;}}"
        )
    add_address(pair.a.namespace, "172.17.0.2/32", "lo")
    make(pair, MISTAKES)
    pair.start()
    pair.a.namespace.ip("address", "del", f"{outer(0, 'gone')}/24", "dev", "wan")
    gateways = {"a": pair.a, "b": pair.b}

    def missing() -> dict[str, str | None]:
        said = {name: causes(gateway) for name, gateway in gateways.items()}
        return {
            name: said[each.by].get(name)
            for name, each in MISTAKES.items()
            if each.text not in said[each.by].get(name, "")
        }

    host = pair.a.namespace
    with pinging(host, "10.99.0.1"), pinging(host, inner(1, "source"), "172.17.0.2"):
        with contextlib.suppress(AssertionError):
            until(lambda: not missing(), "the causes", SOON)
        assert missing() == {}
    assert "pi-b" not in causes(pair.a)
    assert "pi-a" not in causes(pair.b)
    assert states(pair.a)["pi-b"] == states(pair.b)["pi-a"] == "up"
    for gateway, others in ((pair.a, "b"), (pair.b, "a")):
        lines = [line for line in gateway.log.read_text().splitlines() if "a tunnel is" in line]
        assert len(lines) < 3 * len(MISTAKES), lines
        log = gateway.cli("log").stdout
        assert all(each.text in log for each in MISTAKES.values() if each.by != others)
    # A reload mends some, and their causes go.
    for name in ("esn", "icv", "longer"):
        edit(pair.b, lambda config, n=name: config["tunnels"][n].pop("esn", None))
        edit(pair.b, lambda config, n=name: config["tunnels"][n].pop("suite", None))
    pair.b.cli("reload")
    until(lambda: {states(pair.b)[name] for name in ("esn", "icv", "longer")} == {"up"}, "mended")
    assert not {"esn", "icv", "longer"} & set(causes(pair.b))


def test_status_has_the_cause_first_and_an_exit_status(make_pair: MakePair) -> None:
    pair = make_pair(liveness=LIVENESS)
    forwarding(pair.a.namespace, pair.b.namespace)
    pair.start()
    until(lambda: states(pair.a) == {"pi-b": "up"}, "an authentic keepalive", SOON)
    assert pair.a.cli("status").returncode == 0
    pair.b.stop()
    says(pair.a, "tunnel pi-b is down: 192.0.2.2 answers that nothing takes UDP port 4500")
    assert pair.b.cli("status", check=False).returncode == 3
    pair.b.start()
    until(lambda: pair.a.cli("status", check=False).returncode == 0, "all is well again", SOON)


def test_two_ends_behind_a_nat_are_suspected(make_pair: MakePair) -> None:
    pair = make_pair()
    add_address(pair.a.namespace, "192.168.7.2/24")
    add_address(pair.b.namespace, "198.51.100.9/32")
    pair.a.namespace.ip("route", "add", "198.51.100.9", "via", "192.0.2.2")
    for command in ("add table ip t", "add chain ip t c {type filter hook input priority 0;}"):
        pair.b.namespace.run("nft", command)
    pair.b.namespace.run("nft", "add rule ip t c ip daddr 198.51.100.9 drop")
    ends = {"local": "192.168.7.2", "remote": "198.51.100.9", "liveness": LIVENESS}
    edit(pair.a, lambda config: tunnel(config).update(ends))
    pair.a.start()
    says(pair.a, "if the peer is, too, let one of the two routers forward UDP port 4500")


def test_hosts_behind_that_do_not_answer_are_named_with_the_chain_that_drops(
    make_pair: MakePair,
) -> None:
    pair = make_pair()
    with namespaces("h", "i") as hosts:
        for number, (gateway, host) in enumerate(zip((pair.a, pair.b), hosts, strict=True), 1):
            edit(gateway, lambda config: config["gateway"].pop("address"))
            site_host(host, gateway.namespace, number)
            forwarding(gateway.namespace)
        pair.start()
        assert ping(hosts[0], "10.2.0.10", count=2) == 2
        pair.a.namespace.run("nft", "add table ip filter")
        chain = "{type filter hook forward priority 0; policy drop;}"
        pair.a.namespace.run("nft", f"add chain ip filter FORWARD {chain}")
        hosts[1].ip("route", "del", "default")
        # From the gateways themselves, whose packets the other end forwards.
        with pinging(pair.a.namespace, "10.2.0.10"):
            says(pair.b, "packets for 10.2.0.10 get no answer: it is off, or has no route back")
        with pinging(pair.b.namespace, "10.1.0.10"):
            says(pair.a, "chain FORWARD of table ip filter drops what it has no rule for")


def test_networks_of_this_host_inside_the_other_side_are_named(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.a.namespace.ip("link", "add", "lan", "type", "veth", "peer", "name", "lan2")
    for device in ("lan", "lan2"):
        pair.a.namespace.ip("link", "set", device, "up")
    add_address(pair.a.namespace, "10.2.0.201/24", "lan")
    edit(pair.b, lambda config: tunnel(config).update(remote_ts=["192.0.0.0/16", "10.1.0.0/24"]))
    pair.start()
    says(pair.a, "10.2.0.0/24 is behind pi-b and also a network of this host")
    says(pair.b, "192.0.2.0/24, the network of 192.0.2.2, lies inside 192.0.0.0/16")


def test_single_pings_and_silence_are_no_fault(make_pair: MakePair) -> None:
    pair = make_pair(sas=2)
    forwarding(pair.a.namespace, pair.b.namespace)
    pair.start()
    pings = start_pings(pair.a.namespace, "10.2.0.1", 3, interval=1.5)
    pings.wait()
    until(lambda: states(pair.a) == {"pi-b": "up"}, "an answer", SOON)
    for gateway in (pair.a, pair.b):
        assert gateway.cli("status").returncode == 0
        assert causes(gateway) == {}
