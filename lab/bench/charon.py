"""Systems whose keys charon finds: strongSwan's own kernel-libipsec, and esp_gw with its plugin.

Both have the same connection: IKEv2 with a PSK, ESP in UDP, AES-256-GCM, and CHILDREN further
children that nothing begins by itself.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from esp_gw.config.provision import DEFAULT_NAMES
from esp_gw.demo.charon import Charon, copy_plugins, write_section
from esp_gw.demo.netns import add_address, run_command
from esp_gw.demo.pair import PairPlan, gateway_pair
from esp_gw.errors import LabError
from esp_gw.files import write_new
from lab.bench.hosts import OUTER, START_TIMEOUT, running, succeeds, two_hosts, wait_for_traffic
from lab.bench.losses import count_lost
from lab.bench.model import Ike, Link

CHARON = Path("/usr/lib/ipsec/charon")
CHILD, CONNECTION = "bench", "bench"
CHILDREN = 200
INNER = ("10.1.0.1", "10.2.0.1")
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


def swanctl_conf(side: int, secret: str, *, esn: str) -> str:
    """Return charon's configuration of a side; `esn` is the end of its proposals for ESP."""
    parts = ("local_ts", "remote_ts")[:: -1 if side else 1]

    def child(near: str, far: str) -> Mapping[str, object]:
        proposals = f"aes256gcm16-x25519{esn}"
        ends = dict(zip(parts, (near, far), strict=True))
        return {**ends, "esp_proposals": proposals, "rekey_time": 0}

    children = {CHILD: child(f"{INNER[0]}/32", f"{INNER[1]}/32")}
    for number in range(1, CHILDREN + 1):
        children[child_name(number)] = child(f"{INNER[0]}/32", f"10.2.{number}.0/24")
    connection = {
        "version": 2,
        "local_addrs": OUTER[side],
        "remote_addrs": OUTER[1 - side],
        "proposals": "aes256gcm16-prfsha256-x25519",
        "rekey_time": 0,
        "encap": "yes",
        "mobike": "no",
        "local": {"auth": "psk", "id": OUTER[side]},
        "remote": {"auth": "psk", "id": OUTER[1 - side]},
        "children": children,
    }
    shared = {"ike-bench": {"secret": f'"{secret}"'}}
    return write_section({"connections": {CONNECTION: connection}, "secrets": shared}) + "\n"


def child_name(number: int) -> str:
    """Return the name of one of the further children, from 1 on."""
    return f"c{number}"


@contextlib.contextmanager
def strongswan(folder: Path) -> Iterator[Link]:
    """charon with kernel-libipsec: ESP in user space, in charon itself."""
    secret = secrets.token_hex(16)
    # AppArmor profiles match by path and would deny the lab's files: run copies.
    charon = _copy(CHARON, folder)
    swanctl = _copy(Path(shutil.which("swanctl") or "swanctl"), folder)
    with two_hosts() as hosts, running(folder) as daemons:
        pids, run = [], []
        for side, host in enumerate(hosts):
            home = folder / str(side)
            home.mkdir()
            write_new(home / "strongswan.conf", _STRONGSWAN_CONF.format(folder=home).encode())
            # It has no extended sequence numbers.
            write_new(home / "swanctl.conf", swanctl_conf(side, secret, esn="").encode())
            add_address(host, f"{INNER[side]}/32", "lo")
            variable = f"STRONGSWAN_CONF={home}/strongswan.conf"
            pids.append(daemons.start(host, "env", variable, str(charon)))
            run.append(partial(_swanctl, swanctl, home))
        for side in (0, 1):
            file = str(folder / str(side) / "swanctl.conf")
            command = _command(swanctl, folder / str(side), "--load-all", "--file", file)
            daemons.wait_until(
                lambda command=command: succeeds(command),  # type: ignore[misc]
                "charon did not take its configuration",
            )
        # Its routes need an address of the host in each child's local network.
        addresses = f"for n in $(seq {CHILDREN}); do echo address add 10.2.$n.1/32 dev lo; done"
        hosts[1].run("sh", "-c", f"{addresses} | ip -batch -")
        run[0]("--initiate", "--child", CHILD)
        link = Link(*hosts, *INNER, tuple(pids), ike=Ike((run[0], run[1]), (pids[0], pids[1])))
        wait_for_traffic(link)
        yield link


def _command(program: Path, home: Path, *arguments: str) -> tuple[str, ...]:
    variable = f"STRONGSWAN_CONF={home}/strongswan.conf"
    return ("env", variable, str(program), *arguments, "--uri", f"unix://{home}/vici")


def _swanctl(program: Path, home: Path, *arguments: str) -> str:
    command = _command(program, home, *arguments)
    return run_command(command, START_TIMEOUT, True, where=f"swanctl {arguments[0]}").stdout


def _copy(program: Path, folder: Path) -> Path:
    if not program.exists():
        raise LabError(f"{program.name} is not installed")
    return Path(shutil.copy2(program, folder))


@dataclass(frozen=True, slots=True)
class EspGwIke:
    """Two gateways, each with a charon and the plugin, by default the installed one.

    A child has one SA in each direction. charon's processes are the system's too.
    """

    engine: str
    plugin: Path | None = None

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[Link]:
        """Set up both gateways with their charons and yield their link. Raises LabError."""
        plugins = copy_plugins(folder, self.plugin)
        plan = PairPlan(settings={"engine": self.engine})
        with gateway_pair(folder, plan, _provision) as pair, contextlib.ExitStack() as stack:
            pair.start()
            gateways = (pair.a, pair.b)
            charons = []
            for side, gateway in enumerate(gateways):
                home = folder / f"charon-{side}"
                home.mkdir(mode=0o700)
                swanctl_dir = gateway.config.parent / "swanctl"
                charon = Charon(gateway.namespace, home, plugins, gateway.socket, swanctl_dir)
                stack.callback(charon.close)
                charon.start()
                charons.append(charon)
            run = [partial(_run, charon) for charon in charons]
            run[0]("--initiate", "--child", CHILD)
            pids = tuple(
                pid
                for gateway, charon in zip(gateways, charons, strict=True)
                for pid in (gateway.pid, charon.pid)
            )
            ike = Ike(
                (run[0], run[1]),
                (charons[0].pid, charons[1].pid),
                (pair.a.pid, pair.b.pid),
                partial(count_lost, gateways),
            )
            link = Link(pair.a.namespace, pair.b.namespace, *INNER, pids, ike=ike)
            wait_for_traffic(link)
            yield link


def _run(charon: Charon, *arguments: str) -> str:
    return charon.swanctl(*arguments).stdout


def _provision(output: Path, plan: PairPlan, settings: Sequence[Mapping[str, object]]) -> None:
    secret = secrets.token_hex(16)
    for side, name in enumerate(DEFAULT_NAMES):
        swanctl = output / name / "swanctl"
        swanctl.mkdir(parents=True, mode=0o700)
        fields = {"address": plan.inner(side), **settings[side]}
        lines = ["gateway:", *(f"  {key}: {value}" for key, value in fields.items())]
        write_new(output / name / "gateway.yaml", ("\n".join(lines) + "\n").encode())
        write_new(swanctl / "swanctl.conf", swanctl_conf(side, secret, esn="-esn").encode())
