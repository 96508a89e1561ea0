"""Two hosts whose charons negotiate with each other, each with a gateway that is a fake."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import add_address, namespaces, wire
from tests.support.charon import ESP, IKE, Charon, Installation
from tests.support.fake_owner import FakeOwner, Json
from tests.support.labtools import until

ADDRESSES = ("192.0.2.1", "192.0.2.2")
NETWORKS = ("10.1.0.0/24", "10.2.0.0/24")
IDENTITIES = ("a.example", "b.example")
OWN = {"peer", "soft_seconds", "hard_seconds"}


@dataclass
class End:
    """A host: its charon and the gateway's side of the control socket."""

    charon: Charon
    owner: FakeOwner
    number: int

    @property
    def address(self) -> str:
        return ADDRESSES[self.number]

    def sa(self, direction: str) -> Json:
        """Return the only SA of a direction."""
        (found,) = [sa for (found, _), sa in self.owner.sas.items() if found == direction]
        return found

    def policy(self) -> Json:
        """Return the only policy."""
        (policy,) = self.owner.policies.values()
        return policy


def child(number: int, **fields: object) -> Json:
    """Return a child between the two networks, as the end of that number has it."""
    return {
        "local_ts": NETWORKS[number],
        "remote_ts": NETWORKS[1 - number],
        "esp_proposals": ESP,
        **fields,
    }


def connection(
    number: int,
    children: Json,
    auth: Json | None = None,
    addresses: tuple[str, str] = ADDRESSES,
    **fields: object,
) -> Json:
    """Return the connection of an end of that number."""
    auth = auth or {"auth": "psk"}
    certificate = {"certs": f"{IDENTITIES[number]}.pem"} if auth["auth"] == "pubkey" else {}
    return {
        "version": 2,
        "local_addrs": addresses[number],
        "remote_addrs": addresses[1 - number],
        "proposals": IKE,
        "mobike": "no",
        "local": {**auth, **certificate, "id": IDENTITIES[number]},
        "remote": {**auth, "id": IDENTITIES[1 - number]},
        "children": children,
        **fields,
    }


def configure(
    ends: list[End], auth: Json | None = None, of_connection: Json | None = None, **fields: object
) -> None:
    """Write the configuration of both ends: one child `net` with these fields."""
    for end in ends:
        net = child(end.number, **fields)
        peer = connection(end.number, {"net": net}, auth, **(of_connection or {}))
        psk = {"id-a": IDENTITIES[0], "id-b": IDENTITIES[1], "secret": '"a secret of the test"'}
        end.charon.configure({"peer": peer}, {"ike-peer": psk})


@contextlib.contextmanager
def two_ends(*installed: Installation) -> Iterator[list[End]]:
    """Two hosts on a wire, configured with a PSK, not started; of one installation or of two."""
    with contextlib.ExitStack() as stack:
        # Short, for paths of sockets.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ike")))
        hosts = stack.enter_context(namespaces("ike-a", "ike-b"))
        wire(*hosts)
        ends = []
        for number, host in enumerate(hosts):
            add_address(host, f"{ADDRESSES[number]}/24")
            place = folder / "ab"[number]
            place.mkdir()
            owner = FakeOwner(place / "control.sock", host)
            charon = Charon(host, place, installed[number % len(installed)], owner.path)
            stack.callback(owner.stop)
            stack.callback(charon.close)
            ends.append(End(charon, owner, number))
        configure(ends)
        yield ends
        for end in ends:
            assert end.owner.faults == [], end.charon.read_output()


def start(*ends: End) -> None:
    for end in ends:
        end.owner.start()
        end.charon.start()


def is_up(end: End) -> bool:
    """True if an end has a pair of SAs, and its policy uses the outbound one."""
    if sorted(direction for direction, _ in [*end.owner.sas]) != ["inbound", "outbound"]:
        return False
    return set(end.owner.protected().values()) == {end.sa("outbound")["spi"]}


def await_child(end: End) -> None:
    """Wait until an end has one pair of SAs, in use."""
    until(lambda: is_up(end), f"a child: {end.charon.read_output()}", 20)


def certify(ends: list[End]) -> None:
    """Make a CA and a certificate of each end, ECDSA with P-256, by strongSwan's pki."""
    here = ends[0].charon.folder / "swanctl"
    authority, key = here / "ca.pem", here / "ca.key"
    key.write_bytes(_pki("--gen", "--type", "ecdsa", "--size", "256"))
    dn = ("--dn", "CN=CA of a test")
    authority.write_bytes(_pki("--self", "--ca", "--in", str(key), *dn))
    for end in ends:
        name, folder = IDENTITIES[end.number], end.charon.folder / "swanctl"
        own = folder / "private" / f"{name}.key"
        own.write_bytes(_pki("--gen", "--type", "ecdsa", "--size", "256"))
        signer = ("--cacert", str(authority), "--cakey", str(key))
        subject = ("--dn", f"CN={name}", "--san", name)
        issue = ("--issue", "--type", "priv", "--in", str(own), *signer, *subject)
        (folder / "x509" / f"{name}.pem").write_bytes(_pki(*issue))
        (folder / "x509ca" / "ca.pem").write_bytes(authority.read_bytes())
    configure(ends, {"auth": "pubkey"})


def _pki(*arguments: str) -> bytes:
    command = ["pki", *arguments, "--outform", "pem"]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def mirrored(one: Json, other: Json) -> Json:
    """Return the members in which an SA of one end differs from the same SA at the other end.

    `local` and `remote` are changed over first, of the SA and of its selectors. What is
    an end's own is left out: whom it speaks to, and its time limits.
    """
    swap = {"local": "remote", "remote": "local"}
    swap |= {f"{name}_port": f"{value}_port" for name, value in swap.items()}

    def over(members: Json) -> Json:
        return {swap.get(name, name): value for name, value in members.items()}

    turned: dict[str, Any] = over(other)
    turned["selectors"] = [over(selector) for selector in other["selectors"]]
    shared = one.keys() - OWN
    return {name: (one[name], turned[name]) for name in shared if one[name] != turned[name]}
