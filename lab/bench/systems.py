"""Peers without WireGuard: each set up in two namespaces, following its manual, and torn down."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from esp_gw.demo.netns import add_address
from esp_gw.errors import LabError
from esp_gw.files import write_new
from lab.bench.certificates import make_certificate
from lab.bench.hosts import OUTER, checked, running, succeeds, two_hosts, wait_for_traffic
from lab.bench.model import Link
from lab.bench.ping import answers

CHARON = Path("/usr/lib/ipsec/charon")


@contextlib.contextmanager
def veth(folder: Path) -> Iterator[Link]:
    """The plain wire, without a tunnel."""
    with two_hosts() as (a, b):
        link = Link(a, b, *OUTER)
        # The neighbours know each other then.
        wait_for_traffic(link)
        yield link


@contextlib.contextmanager
def openvpn(folder: Path) -> Iterator[Link]:
    """OpenVPN, point to point: TLS, AES-256-GCM, without the kernel's data channel offload."""
    inner = ("10.9.0.1", "10.9.0.2")
    prints = [make_certificate(folder, side) for side in ("a", "b")]
    role = (("--tls-server", "--dh", "none"), ("--tls-client",))
    with two_hosts() as hosts, running(folder) as daemons:
        pids = [
            daemons.start(
                host,
                *("openvpn", "--dev", "tun0", "--dev-type", "tun", "--proto", "udp4"),
                *("--port", "1194", "--remote", OUTER[1 - side], "--disable-dco"),
                *("--ifconfig", inner[side], inner[1 - side], "--tun-mtu", "1420"),
                *("--mssfix", "0", "--fast-io", "--txqueuelen", "1000"),
                *("--sndbuf", "4194304", "--rcvbuf", "4194304"),
                *("--cipher", "AES-256-GCM", "--data-ciphers", "AES-256-GCM"),
                *role[side],
                *("--cert", str(folder / f"{name}.crt"), "--key", str(folder / f"{name}.key")),
                *("--peer-fingerprint", prints[1 - side], "--verb", "1"),
            )
            for side, (host, name) in enumerate(zip(hosts, "ab", strict=True))
        ]
        link = Link(*hosts, *inner, tuple(pids))
        daemons.wait_until(lambda: answers(link), "no ping came through the tunnel")
        yield link


_STRONGSWAN_CONF = """\
charon {{
  load = random nonce openssl kdf gcm aes sha1 sha2 hmac curve25519 pem pkcs1 pubkey \
kernel-libipsec kernel-netlink socket-default vici updown
  plugins {{ vici {{ socket = unix://{folder}/vici }} }}
  filelog {{ log {{ path = {folder}/charon.log
    default = 1 }} }}
}}
swanctl {{ load = pem pkcs1 x509 pubkey openssl random }}
"""
_SWANCTL_CONF = """\
connections {{
  bench {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes256gcm16-prfsha256-x25519
    rekey_time = 0
    mobike = no
    local {{ auth = psk
      id = {local} }}
    remote {{ auth = psk
      id = {remote} }}
    children {{ bench {{
      local_ts = {local_ts}/32
      remote_ts = {remote_ts}/32
      esp_proposals = aes256gcm16
      rekey_time = 0 }} }}
  }}
}}
secrets {{ ike-bench {{ secret = {secret} }} }}
"""


@contextlib.contextmanager
def strongswan(folder: Path) -> Iterator[Link]:
    """charon with kernel-libipsec: IKEv2 with a PSK, ESP in userspace, AES-256-GCM."""
    inner = ("10.1.0.1", "10.2.0.1")
    secret = f'"{secrets.token_hex(16)}"'
    # AppArmor profiles match by path and would deny the lab's files: run copies.
    charon = _copy(CHARON, folder)
    swanctl = _copy(Path(shutil.which("swanctl") or "swanctl"), folder)
    with two_hosts() as hosts, running(folder) as daemons:
        pids = []
        for side, host in enumerate(hosts):
            home = folder / str(side)
            home.mkdir()
            write_new(home / "strongswan.conf", _STRONGSWAN_CONF.format(folder=home).encode())
            config = _SWANCTL_CONF.format(
                local=OUTER[side],
                remote=OUTER[1 - side],
                local_ts=inner[side],
                remote_ts=inner[1 - side],
                secret=secret,
            )
            write_new(home / "swanctl.conf", config.encode())
            add_address(host, f"{inner[side]}/32", "lo")
            variable = f"STRONGSWAN_CONF={home}/strongswan.conf"
            pids.append(daemons.start(host, "env", variable, str(charon)))
        for side in (0, 1):
            home = folder / str(side)
            command = _swanctl(swanctl, home, "--load-all", "--file", str(home / "swanctl.conf"))
            daemons.wait_until(
                lambda command=command: succeeds(command),  # type: ignore[misc]
                "charon did not take its configuration",
            )
        checked(_swanctl(swanctl, folder / "0", "--initiate", "--child", "bench"))
        link = Link(*hosts, *inner, tuple(pids))
        wait_for_traffic(link)
        yield link


def _swanctl(program: Path, home: Path, *arguments: str) -> tuple[str, ...]:
    variable = f"STRONGSWAN_CONF={home}/strongswan.conf"
    return ("env", variable, str(program), *arguments, "--uri", f"unix://{home}/vici")


def _copy(program: Path, folder: Path) -> Path:
    if not program.exists():
        raise LabError(f"{program.name} is not installed")
    return Path(shutil.copy2(program, folder))
