"""A Debian machine under systemd, for tests that do what users do, and its surroundings.

    machine [esp0 10.1.0.1] --- 192.0.2.1 ==== wire ==== 192.0.2.2 wan --- [esp0 10.2.0.1] peer

The machine is emulated. The peer, which is also its router, runs in a namespace here. A service of
the machine, the talker, sends to protected and to other addresses from power-on to power-off; all
frames of that time are captured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from esp_gw.config.provision import make_pair
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, namespaces
from lab.vm.__main__ import CACHE, CHECKOUT
from lab.vm.disk import Contents, make_disk
from lab.vm.image import ARCHITECTURES, kernel_image
from lab.vm.machine import Machine
from lab.vm.packages import make_packages
from lab.vm.qemu import NETDEV, Setup, Tap
from lab.vm.userland import RELEASES
from lab.waiting import holds_within
from tests.support.engines import ENGINES
from tests.support.guest import Guest, Result
from tests.support.pcap import Packet, packets_from
from tests.vm.inside.talker import OPEN

ETC = "/etc/esp-gw"
CONFIG = f"{ETC}/gateway.yaml"
STATE = "/var/lib/esp-gw"
PLAIN, SEALED = "/etc/credstore/out.key", "/etc/credstore.encrypted/in.key"
"""Files of credentials, of which the second is encrypted."""
MISTAKE = "tunels"
DROP_INS = "/etc/systemd/system/esp-gw.service.d"
LIMIT = 600.0
"""Seconds for a boot or a command in an emulator that may share two processors."""
JOURNAL = ("journalctl", "-b", "-q", "-o", "cat", "-u", "esp-gw")
INNER = {4: "10.1.0.1", 6: "fd00:1::1"}
"""The machine's addresses in the tunnel."""
PROPERTIES = (
    *("ActiveState", "ExecMainPID", "ExecMainStatus", "MainPID", "NRestarts", "Result"),
    *("StatusText", "WatchdogUSec"),
)
_MAC = "52:54:00:e5:90:01"
_NETWORK = """\
[Match]
Type=ether
[Network]
Address=192.0.2.1/24
Address=2001:db8::1/64
Gateway=192.0.2.2
Gateway=2001:db8::2
"""
_TALKER = f"""\
[Unit]
DefaultDependencies=no
[Service]
User=daemon
RuntimeDirectory=talker
ExecStart=/usr/bin/python3 {CHECKOUT}/tests/vm/inside/talker.py
[Install]
WantedBy=sysinit.target
"""
# Denied system calls are in the kernel's log: init has the variable in its environment.
_LOG_DENIED = "kernel.seccomp.actions_logged = kill_process kill_thread trap errno trace log\n"
# On a busy host the emulator exceeds the usual times, which is no fault of a unit.
_PATIENT = "[Manager]\nDefaultTimeoutStartSec=600\n"
_WAITS_FOR_THE_NETWORK = """\
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --timeout=0
"""
_CONTENTS = Contents(
    {
        "/etc/systemd/system.conf.d/patient.conf": _PATIENT,
        "/etc/systemd/system/systemd-networkd-wait-online.service.d/patient.conf": (
            _WAITS_FOR_THE_NETWORK
        ),
        "/etc/systemd/network/wan.network": _NETWORK,
        "/etc/systemd/system/talker.service": _TALKER,
        "/etc/sysctl.d/denied.conf": _LOG_DENIED,
    },
    ("systemd-networkd", "nftables", "talker"),
)
# Units that the gateway has nothing to do with, each with seconds of an emulator's time.
_MASKED = (
    *("e2scrub_reap.service", "e2scrub_reap.timer", "getty.target", "systemd-binfmt.service"),
    *("systemd-logind.service", "systemd-user-sessions.service"),
)
_OPTIONS = (
    *("SYSTEMD_LOG_SECCOMP=1", "mitigations=off", "quiet", "systemd.show_status=no"),
    *(f"systemd.mask={unit}" for unit in _MASKED),
)
# Without AVX, which qemu emulates slowly.
_CPU = "Nehalem,+aes,+pclmulqdq"


class Debian:
    """A Debian machine that is booted, given commands, and powered off, more than once."""

    def __init__(self, setup: Setup, capture: Path, folder: Path, peer: LabGateway) -> None:
        self.config: dict[str, Any] = yaml.safe_load((folder / "gateway.yaml").read_text())
        self.keys = {path.name: path.read_text() for path in (folder / "keys").iterdir()}
        self.peer = peer
        self._setup = setup
        self._capture = capture
        self._stack = contextlib.ExitStack()
        self._is_set_up = False

    def boot(self) -> None:
        """Power the machine on; it may still be starting afterwards."""
        self._capture.unlink(missing_ok=True)
        self._machine = self._stack.enter_context(Machine(self._setup))
        self._guest = Guest(self._machine, self._setup)

    def plug(self, *, up: bool) -> None:
        """Plug the cable in or out."""
        self._machine.monitor.set_link(NETDEV, up=up)

    def power_off(self) -> list[Packet]:
        """Shut the machine down; return all packets that it sent from its power-on on."""
        self.ok("systemctl", "poweroff")
        self._machine.wait(time.monotonic() + LIMIT)
        self._stack.close()
        return self.sent()

    def close(self) -> None:
        """End the machine at once."""
        self._stack.close()

    def run(self, *command: str) -> Result:
        """Run a command as root."""
        return self._guest.run(*command, limit=LIMIT)

    def ok(self, *command: str) -> str:
        """Run a command that must succeed and return its output."""
        result = self.run(*command)
        assert result.status == 0, f"{command}: {result.tail}"
        return result.stdout

    def shell(self, script: str, *arguments: str) -> str:
        """Run a script that must succeed, with `arguments` as $1 and so on; return its output."""
        return self.ok("sh", "-ec", script, "sh", *arguments)

    def write(self, path: str, text: str, *, mode: str = "644", owner: str = "root") -> None:
        """Write a file, and the folders that it needs."""
        script = 'mkdir -p "${1%/*}"; printf %s "$2" >"$1"; chmod "$3" "$1"; chown "$4" "$1"'
        self.shell(script, path, text, mode, owner)

    def set_up(self, engine: str) -> None:
        """Configure the gateway for the first time, as the guide has it."""
        if self._is_set_up:
            return
        self.config["gateway"].update(engine=engine, latency="low")
        for name, text in self.keys.items():
            self.write(f"{ETC}/keys/{name}", text, mode="600")
        self.configure(self.config)
        self.shell(f"chown -R esp-gw: {ETC} && esp-gw ledger create")
        self._is_set_up = True

    def configure(self, config: dict[str, Any]) -> None:
        """Write the gateway's configuration, without telling it."""
        self.write(CONFIG, yaml.safe_dump(config), mode="600", owner="esp-gw")

    def misconfigure(self) -> None:
        """Write a configuration with the unknown setting MISTAKE."""
        self.configure({**self.config, MISTAKE: {}})

    def drop_in(self, name: str, *lines: str) -> None:
        """Write a drop-in of the section [Service] and make systemd read it."""
        self.write(f"{DROP_INS}/{name}.conf", "\n".join(("[Service]", *lines, "")))
        self.ok("systemctl", "daemon-reload")

    def remove_drop_in(self, name: str) -> None:
        """Remove a drop-in and make systemd forget it."""
        self.shell('rm "$1" && systemctl daemon-reload', f"{DROP_INS}/{name}.conf")

    def show(self, unit: str = "esp-gw") -> dict[str, str]:
        """Return the PROPERTIES of a unit: one command takes as long as the next."""
        lines = self.ok("systemctl", "show", "-p", ",".join(PROPERTIES), unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, *options: str) -> list[str]:
        """Return the messages of the gateway's unit since the machine's start."""
        return self.ok(*JOURNAL, *options).splitlines()

    def wait_for(self, condition: Callable[[], object], pause: float = 0.3) -> None:
        """Wait until a condition holds, with `pause` seconds between two looks.

        A look that runs a command takes processor time from what is waited for.
        """

        def holds() -> bool:
            if condition():
                return True
            time.sleep(pause)
            return False

        assert holds_within(LIMIT, holds), self.tail()

    def wait_for_journal(self, text: str, *options: str) -> None:
        """Wait until the gateway has written a line with `text`."""
        words = (*JOURNAL, *options, "-g", text)
        self.wait_for(lambda: self.run(*words).status == 0, pause=2)

    def wait_active(self, than: str = "0") -> None:
        """Wait until the gateway is ready, in a process other than `than`."""

        def is_new() -> bool:
            # The peer is asked first, which takes no time of the emulator.
            if not self.is_reached():
                return False
            shown = self.show()
            return shown["ActiveState"] == "active" and shown["MainPID"] not in ("0", than)

        self.wait_for(is_new)

    def is_reached(self, version: int = 4) -> bool:
        """True if the peer reaches the machine through the tunnel at once."""
        ping = ("ping", "-c", "1", "-W", "2", INNER[version])
        return self.peer.namespace.run(*ping, check=False).returncode == 0

    def tail(self) -> str:
        """Return the end of the journal, for a failure message."""
        return self.run("journalctl", "-b", "-n", "40", "--no-pager").stdout

    def assert_carries(self) -> None:
        """Check that the tunnel carries both families."""
        for version in INNER:
            assert holds_within(LIMIT / 10, lambda v=version: self.is_reached(v)), self.tail()

    def sent(self) -> list[Packet]:
        """Return the packets that the machine has sent since its power-on."""
        return list(packets_from(_MAC, self._capture))

    def later(self, rounds: int = 4) -> list[Packet]:
        """Return what the machine sends while the talker speaks some rounds."""
        before = len(self.sent())

        def are_over() -> bool:
            heard = [packet for packet in self.sent()[before:] if sent_to([packet], OPEN)]
            return len(heard) >= rounds * len(OPEN)

        self.wait_for(are_over)
        return self.sent()[before:]

    def assert_closed(self) -> None:
        """Check that nothing protected leaves in the clear, while other packets do leave."""
        assert leaked(self.later()) == []


def sent_to(packets: Sequence[Packet], addresses: Sequence[str]) -> list[Packet]:
    """Return the packets with one of these destinations."""
    wanted = {ip_address(address) for address in addresses}
    return [packet for packet in packets if packet.destination in wanted]


def leaked(packets: Sequence[Packet]) -> list[Packet]:
    """Return the packets that are in the clear and should not be."""
    protected = [ip_network("10.2.0.0/24"), ip_network("fd00:2::/64")]
    return [packet for packet in packets if any(packet.destination in net for net in protected)]


@contextlib.contextmanager
def debian(number: str, folder: Path) -> Iterator[Debian]:
    """Make a machine of a release (a key of RELEASES) with the gateway installed; it is off.

    Its wire, the peer and the talker are ready, the gateway is not configured.
    """
    with namespaces("peer") as (namespace,):
        namespace.ip("tuntap", "add", "wan", "mode", "tap")
        for address in ("192.0.2.2/24", "2001:db8::2/64"):
            add_address(namespace, address)
        namespace.ip("link", "set", "wan", "up")
        peer = _start_peer(namespace, folder)
        try:
            packages = folder / "packages"
            make_packages(packages, CACHE, number, CHECKOUT, print)
            disk = folder / "disk.img"
            make_disk(disk, CACHE, RELEASES[number], CHECKOUT, packages, _CONTENTS, print)
            x86, capture = ARCHITECTURES["x86_64"], folder / "wire.pcap"
            setup = Setup(
                x86,
                kernel_image(CACHE, x86, print, RELEASES[number].name),
                Path("/usr/bin/python3"),
                cpu=_CPU,
                checkout=CHECKOUT,
                tap=Tap(namespace.name, "wan", _MAC, capture),
                disk=disk,
                options=_OPTIONS,
            )
            machine = Debian(setup, capture, folder / "init/machine", peer)
            with contextlib.closing(machine):
                yield machine
        finally:
            peer.stop()


def _start_peer(namespace: Namespace, folder: Path) -> LabGateway:
    (folder / "peer").mkdir(mode=0o700)
    peer = LabGateway(namespace, folder / "init/peer/gateway.yaml", folder / "peer")
    make_pair(
        folder / "init",
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        local_nets=[ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")],
        remote_nets=[ip_network("10.2.0.0/24"), ip_network("fd00:2::/64")],
        names=("machine", "peer"),
        remote_settings={**peer.settings, "engine": ENGINES[-1]},
    )
    peer.create_ledger()
    peer.start()
    return peer
