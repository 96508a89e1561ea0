"""The peers: each set up in two namespaces, following its manual, and torn down.

Only the measured system runs: it is started for its turn and leaves nothing behind.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_gw.demo.netns import Namespace, add_address, end, namespaces, run_command, wire
from esp_gw.errors import LabError
from esp_gw.files import write_new
from lab.bench.certificates import make_certificate
from lab.bench.measures import answers
from lab.bench.model import Link
from lab.waiting import holds_within

START_TIMEOUT = 20.0
CHARON = Path("/usr/lib/ipsec/charon")
OUTER = ("192.0.2.1", "192.0.2.2")


@contextlib.contextmanager
def two_hosts(*roles: str) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a wire with the addresses OUTER."""
    with namespaces(*(roles or ("a", "b"))) as (a, b):
        wire(a, b)
        for host, address in zip((a, b), OUTER, strict=True):
            add_address(host, f"{address}/24")
        yield a, b


@contextlib.contextmanager
def veth(folder: Path) -> Iterator[Link]:
    """The plain wire, without a tunnel."""
    with two_hosts() as (a, b):
        yield Link(a, b, *OUTER)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_TIMEOUT) -> None:
    """Wait for a condition. Raises LabError with the message `what` if it doesn't hold in time."""
    if not holds_within(seconds, condition):
        raise LabError(what)


def wait_for_traffic(link: Link) -> None:
    """Wait until a ping through the link is answered. Raises LabError."""
    wait_until(lambda: answers(link), "no ping came through the tunnel")


class Daemons:
    """Processes of one link: each with its own log, ended together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[subprocess.Popen[str], Path]] = []

    def start(self, host: Namespace, *command: str) -> int:
        """Start a daemon in a mount namespace with a private /run; return its process id."""
        log = self._folder / f"{len(self._running)}.log"
        with log.open("w") as output:
            process = host.start(
                *("sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"),
                *command,
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
        self._running.append((process, log))
        return process.pid

    def check(self) -> None:
        """Raise LabError with the last log line of a daemon that has ended."""
        for process, log in self._running:
            if process.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise LabError(lines[-1] if lines else "a daemon ended without output")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while all daemons run. Raises LabError."""

        def happened() -> bool:
            self.check()
            return condition()

        wait_until(happened, what)

    def end(self) -> None:
        """End all daemons."""
        for process, _ in self._running:
            end(process)


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[Daemons]:
    daemons = Daemons(folder)
    try:
        yield daemons
    finally:
        daemons.end()


@dataclass(frozen=True, slots=True)
class WireguardGo:
    """wireguard-go, with fresh keys for each start."""

    binary: str

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[Link]:
        """Set up both ends and yield their link. Raises LabError."""
        keys = [_wireguard_key() for _ in OUTER]
        inner = ("10.9.0.1", "10.9.0.2")
        with two_hosts() as hosts, _running(folder) as daemons:
            pids = [daemons.start(host, self.binary, "-f", "wg0") for host in hosts]
            for side, (host, pid) in enumerate(zip(hosts, pids, strict=True)):
                config = folder / f"wg{side}.conf"
                text = (
                    f"[Interface]\nPrivateKey = {keys[side][0]}\nListenPort = 51820\n"
                    f"[Peer]\nPublicKey = {keys[1 - side][1]}\n"
                    f"AllowedIPs = {inner[1 - side]}/32\nEndpoint = {OUTER[1 - side]}:51820\n"
                )
                write_new(config, text.encode())
                # The control socket is in the daemon's private /run.
                enter = ("nsenter", "-t", str(pid), "-m", "-n", "wg", "setconf", "wg0", str(config))
                daemons.wait_until(
                    lambda enter=enter: _succeeds(enter),  # type: ignore[misc]
                    "wireguard-go did not take its configuration",
                )
                add_address(host, f"{inner[side]}/24", "wg0")
                host.ip("link", "set", "wg0", "mtu", "1420", "up")
            link = Link(*hosts, *inner, tuple(pids))
            wait_for_traffic(link)
            yield link


def _wireguard_key() -> tuple[str, str]:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    key = X25519PrivateKey.generate()
    return (
        base64.b64encode(key.private_bytes_raw()).decode(),
        base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    )


@contextlib.contextmanager
def openvpn(folder: Path) -> Iterator[Link]:
    """OpenVPN, point to point: TLS, AES-256-GCM, without the kernel's data channel offload."""
    inner = ("10.9.0.1", "10.9.0.2")
    prints = [make_certificate(folder, side) for side in ("a", "b")]
    role = (("--tls-server", "--dh", "none"), ("--tls-client",))
    with two_hosts() as hosts, _running(folder) as daemons:
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
    with two_hosts() as hosts, _running(folder) as daemons:
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
                lambda command=command: _succeeds(command),  # type: ignore[misc]
                "charon did not take its configuration",
            )
        _checked(_swanctl(swanctl, folder / "0", "--initiate", "--child", "bench"))
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


def _succeeds(command: Sequence[str]) -> bool:
    return run_command(command, START_TIMEOUT, False).returncode == 0


def _checked(command: Sequence[str]) -> None:
    result = run_command(command, START_TIMEOUT, False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise LabError(lines[-1] if lines else f"{Path(command[2]).name} failed")
