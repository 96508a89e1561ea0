"""IKE peers that use the kernel's own ESP: strongSwan's charon, and libreswan's pluto.

a  charon and esp_gw [esp0]  192.0.2.1 ==== wire ==== 192.0.2.2  [lo] the peer, the kernel  b
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from platform import release
from typing import Any, Protocol

from esp_gw.demo.netns import Namespace, add_address
from esp_gw.demo.pair import NETS, OUTER, PairPlan, gateway_pair
from lab.waiting import holds_within
from tests.support.charon import BASE, Charon, Installation, installed_version
from tests.support.ike_rig import IDENTITIES, child, connection
from tests.support.ike_sites import Site
from tests.support.labtools import edit
from tests.support.libreswan import HELPERS, ipsec_conf

PATIENCE = 120.0
"""Seconds for what two daemons do in an emulator."""
SECRET = "a secret of the test"
SETTINGS = {"delete_rekeyed_delay": 1, "retransmit_tries": 5}
"""Of both charons: a message is repeated for some 20 seconds."""
_NSS = "/var/lib/ipsec/nss"


@dataclass(frozen=True)
class Shape:
    """The negotiated child: one in tunnel mode of one inner IP version.

    `dpd_delay` is in seconds. Without, as here by default, a peer that is only slow isn't dead.
    """

    is_udp: bool
    outer: int
    inner: int
    esn: bool
    dpd_delay: int = 0

    def __str__(self) -> str:
        esp, esn = "udp" if self.is_udp else "esp", "esn" if self.esn else "no-esn"
        return f"{esp}-ipv{self.inner}-in-ipv{self.outer}-{esn}"

    @property
    def words(self) -> str:
        """The configuration of both ends in words, for docs/interop.md."""
        esp = "ESP in UDP" if self.is_udp else "ESP"
        esn = "ESN" if self.esn else "no ESN"
        dpd = ", DPD" if self.dpd_delay else ""
        return f"tunnel, IPv{self.inner} in IPv{self.outer}, {esp}, {esn}, PSK{dpd}"

    @property
    def addresses(self) -> tuple[str, str]:
        """The outer addresses of a and b."""
        return str(OUTER[self.outer][0]), str(OUTER[self.outer][1])

    @property
    def nets(self) -> tuple[str, str]:
        """The prefixes behind a and b."""
        return str(NETS[self.inner][0]), str(NETS[self.inner][1])

    @property
    def target(self) -> str:
        """The address of b inside."""
        return str(NETS[self.inner][1][1])

    @property
    def near_target(self) -> str:
        """The address of a inside."""
        return str(NETS[self.inner][0][1])

    def connection(self, number: int) -> dict[str, Any]:
        """Return charon's connection of an end."""
        net = child(
            number,
            local_ts=self.nets[number],
            remote_ts=self.nets[1 - number],
            esp_proposals=f"aes256gcm16-x25519-{'esn' if self.esn else 'noesn'}",
            dpd_action="restart",
        )
        encap = "yes" if self.is_udp else "no"
        return connection(number, {"net": net}, addresses=self.addresses, encap=encap, dpd_delay=2)


class Peer(Protocol):
    """The peer's IKE daemon, which has its connection from its start on."""

    name: str

    def start(self, shape: Shape) -> None: ...
    def initiate(self) -> None: ...
    def rekey_child(self) -> None: ...
    def rekey_ike(self) -> None: ...
    def kill(self) -> None: ...
    def told(self) -> str:
        """Return the end of what it has said."""


class Strongswan:
    """charon with kernel-netlink."""

    def __init__(self, namespace: Namespace, folder: Path, installed: Installation) -> None:
        self._charon = Charon(namespace, folder, installed, folder / "none.sock")
        plugins = "kernel-netlink socket-default vici updown"
        self._charon.settings = {"load": f"{BASE} {plugins}", **SETTINGS}

    @property
    def name(self) -> str:
        return f"strongSwan {installed_version()} with ESP of Linux {release()}"

    def start(self, shape: Shape) -> None:
        self._charon.configure(
            {"peer": shape.connection(1)}, {"ike-peer": {"secret": f'"{SECRET}"'}}
        )
        self._charon.start()

    def initiate(self) -> None:
        self._charon.swanctl("--initiate", "--child", "net", "--timeout", "60")

    def rekey_child(self) -> None:
        self._charon.swanctl("--rekey", "--child", "net")

    def rekey_ike(self) -> None:
        self._charon.swanctl("--rekey", "--ike", "peer")

    def kill(self) -> None:
        self._charon.kill()

    def told(self) -> str:
        return self._charon.read_output()


class Libreswan:
    """pluto of libreswan, in the root directory that has it; `folder` has its files.

    That directory is one of a virtual machine, whose writes are lost with it.
    """

    def __init__(self, namespace: Namespace, folder: Path, root: Path) -> None:
        self._namespace = namespace
        self._folder = folder
        self._root = root
        self._log = folder / "pluto.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        said = self._inside(f"{HELPERS}/pluto", "--version").stdout
        version = said.split()[1].removeprefix("v")
        return f"libreswan {version} with ESP of Linux {release()}"

    def start(self, shape: Shape) -> None:
        conf = ipsec_conf(
            addresses=(shape.addresses[1], shape.addresses[0]),
            identities=(IDENTITIES[1], IDENTITIES[0]),
            nets=(shape.nets[1], shape.nets[0]),
            esn="yes" if shape.esn else "no",
            encapsulation="yes" if shape.is_udp else "no",
            dpddelay=shape.dpd_delay,
        )
        (self._root / "etc/ipsec.conf").write_text(conf)
        (self._root / "etc/ipsec.secrets").write_text(f'%any %any : PSK "{SECRET}"\n')
        make_nss = f"chroot . certutil -N --empty-password -d sql:{_NSS}"
        script = " && ".join(
            (
                f'mount -t tmpfs tmpfs "{self._root}/run"',
                *(f'mount --rbind {name} "{self._root}{name}"' for name in ("/dev", "/proc")),
                f'cd "{self._root}" && mkdir -p run/pluto .{_NSS}',
                f"{{ test -e .{_NSS}/cert9.db || {make_nss}; }}",
                f"exec chroot . {HELPERS}/pluto --nofork --stderrlog --config /etc/ipsec.conf",
            )
        )
        with self._log.open("a") as log:
            self._process = self._namespace.start(
                *("unshare", "--mount", "sh", "-c", script),
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        assert holds_within(PATIENCE, self._is_ready), self.told()

    def _is_ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.told()
        # It reads the secrets last.
        is_listening = "loading secrets" in self._log.read_text()
        return is_listening and '"net":' in self._whack("--status", check=False).stdout

    def initiate(self) -> None:
        self._whack("--initiate", "--name", "net")

    def rekey_child(self) -> None:
        self._whack("--rekey-ipsec", "--name", "net")

    def rekey_ike(self) -> None:
        self._whack("--rekey-ike", "--name", "net")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        # The kernel's SAs and policies outlive it; they are what a start of it removes first.
        for what in ("state", "policy"):
            self._namespace.ip("xfrm", what, "flush")

    def told(self) -> str:
        return self._log.read_text()[-4000:]

    def _whack(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._inside(f"{HELPERS}/whack", *arguments, check=check)

    def _inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the root directory, as pluto sees it where it runs."""
        mounts = []
        if self._process is not None:
            mounts = ["nsenter", "--target", str(self._process.pid), "--mount"]
        words = (*mounts, "chroot", str(self._root), *command)
        return self._namespace.run(*words, check=check)


class KernelIke:
    """A gateway with charon beside a peer with the kernel's ESP."""

    def __init__(self, site: Site, host: Namespace) -> None:
        self.site = site
        self.near = site.gateway.namespace
        self.far = host

    def until(self, condition: Callable[[], object], what: str, peer: Peer) -> None:
        """Wait for a condition; fail with `what`, and with what both ends have said."""
        logs = (self.site.charon.read_output, peer.told)
        assert holds_within(PATIENCE, condition), "\n".join([what, *(log() for log in logs)])

    def refused(self) -> dict[str, int]:
        """Return the packets that the gateway or the kernel has not carried, by counter."""
        lines = self.far.run("cat", "/proc/net/xfrm_stat").stdout.splitlines()
        counters = {name: int(value) for name, value in map(str.split, lines)}
        counters |= self.site.gateway.call("GetStats")["drops"]
        return {name: value for name, value in counters.items() if value}

    def initiate(self, peer: Peer) -> None:
        """Begin the child from our end, and wait until it has both SAs."""
        command = ("--initiate", "--child", "net", "--timeout", "60")
        done = self.site.charon.swanctl(*command, check=False)
        assert done.returncode == 0, f"{self.site.charon.read_output()}\n{peer.told()}"

    @contextlib.contextmanager
    def joined(self, shape: Shape, peer: Peer) -> Iterator[None]:
        """Start the peer, with the connection of both ends; end it with the block."""
        self.site.charon.configure(
            {"peer": shape.connection(0)}, {"ike-peer": {"secret": f'"{SECRET}"'}}
        )
        self.site.charon.load()
        try:
            peer.start(shape)
            yield
        finally:
            # One that lives would begin the child anew.
            peer.kill()
            self.site.charon.swanctl("--terminate", "--ike", "peer", "--force", check=False)
            self.until(lambda: not self.site.spis(), "the SAs are gone", peer)


@contextlib.contextmanager
def kernel_ike(folder: Path, engine: str, installed: Installation) -> Iterator[KernelIke]:
    """Start a gateway and its charon, and prepare the host beside it; no peer runs yet."""
    plan = PairPlan(inner_versions=(4, 6), settings={"engine": engine})
    with gateway_pair(folder, plan) as pair, contextlib.ExitStack() as stack:
        edit(pair.a, lambda document: document.pop("tunnels"))
        home = folder / "a"
        home.mkdir()
        charon = Charon(pair.a.namespace, home, installed, pair.a.socket)
        charon.settings = SETTINGS
        charon.configure({}, {})
        stack.callback(charon.close)
        for version in (4, 6):
            near, far = NETS[version]
            host = pair.b.namespace
            add_address(host, f"{far[1]}/{far.max_prefixlen}", "lo")
            # The policy decides; the route only makes the kernel ask it.
            via = ("via", str(OUTER[version][0]), "src", str(far[1]))
            host.ip("route", "add", str(near), *via)
        pair.a.start()
        charon.start()
        yield KernelIke(Site(charon, pair.a, 0), pair.b.namespace)
