"""`esp-gw invite` and `join` as a user has them: from empty hosts to a tunnel that carries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from esp_gw.demo.netns import Namespace, add_address, namespaces, wire
from tests.support.labtools import ping, until

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).parents[2]
# The state and control socket of a host are at their default places, in memory.
HOST = """
set -eu
for folder in /var/lib /run; do mount -t tmpfs tmpfs "$folder"; done
# As the unit has it.
mkdir /run/esp-gw
echo ready
exec sleep 300
"""
SHIMS = {
    "esp-gw": f'cd {CHECKOUT} && exec {sys.executable} -m esp_gw.cli.main "$@"',
    "sudo": 'shift; exec "$@"',
    # Says that nothing runs, and writes down that it was asked to start.
    "systemctl": 'case "$1" in is-active) exit 3 ;; *) echo "$@" >>"$TMPDIR/started" ;; esac',
}
SSH = """
case "$1" in -G) echo "hostname 192.0.2.1"; exit ;; esac
for last in "$@"; do :; done
export PATH={there}/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR={there}
exec nsenter -t {process} --mount --net sh -c "$last"
"""
NETS = ("--local-net", "10.1.0.0/24", "--remote-net", "10.2.0.0/24")
MIRRORED = ("--local-net", "10.2.0.0/24", "--remote-net", "10.1.0.0/24")


class Host:
    """A host with a configuration folder; commands run as root in its network and its mounts."""

    def __init__(self, namespace: Namespace, folder: Path, process: int) -> None:
        self.namespace = namespace
        self.folder = folder
        self.process = process
        self.config = folder / "etc"
        self.shims = folder / "bin"
        self.shims.mkdir(parents=True)
        for name, script in SHIMS.items():
            self.shim(name, script)

    def shim(self, name: str, script: str) -> None:
        path = self.shims / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def command(self, *arguments: str) -> list[str]:
        enter = ["nsenter", "-t", str(self.process), "--mount", "--net"]
        path = f"PATH={self.shims}:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", path, f"TMPDIR={self.folder}", *arguments]

    def run(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = self.command("esp-gw", *arguments)
        return subprocess.run(
            command, check=False, input=given, capture_output=True, text=True, timeout=60
        )

    def ok(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        result = self.run(*arguments, given=given)
        assert result.returncode == 0, result.stderr
        return result

    def fails(self, *arguments: str, given: str = "", status: int = 1) -> str:
        result = self.run(*arguments, given=given)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    def files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.config)): path.read_text()
            for path in sorted(self.config.rglob("*"))
            if path.is_file()
        }

    @contextmanager
    def gateway(self) -> Iterator[None]:
        command = self.command("esp-gw", "run", "--config", str(self.config))
        with subprocess.Popen(command) as process:
            try:
                until(lambda: process.poll() is None and self.is_up(), "the gateway runs", 30)
                yield
            finally:
                process.terminate()
                process.wait(30)

    def states(self) -> dict[str, int]:
        """The number of tunnels in each state."""
        found: dict[str, int] = json.loads(self.run("status", "--json").stdout)["states"]
        return found

    def is_up(self) -> bool:
        return self.run("tunnel", "list").returncode == 0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with ExitStack() as stack:
        names = stack.enter_context(namespaces("invite-a", "invite-b"))
        wire(*names)
        made = []
        for number, namespace in enumerate(names, 1):
            add_address(namespace, f"192.0.2.{number}/24")
            namespace.ip("route", "add", "default", "via", f"192.0.2.{3 - number}")
            command = namespace.command("unshare", "--mount", "sh", "-c", HOST)
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            made.append(Host(namespace, tmp_path / "ab"[number - 1], process.pid))
        made[1].shim("ssh", SSH.format(there=made[0].folder, process=made[0].process))
        yield made[0], made[1]


def here(host: Host) -> tuple[str, str]:
    return ("--config", str(host.config))


def assert_carries(a: Host, b: Host) -> None:
    with a.gateway(), b.gateway():
        # The end that knows an address sends first.
        until(lambda: ping(a.namespace, "10.2.0.1", count=1) == 1, "the tunnel carries", 20)
        assert ping(b.namespace, "10.1.0.1", count=3) == 3
        for host in (a, b):
            until(lambda host=host: host.states()["up"] == 1, "the tunnel is up")


def test_one_line_joins_two_hosts(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    made = a.ok("invite", "b", *NETS, "--own-name", "a", *here(a))
    # The line alone goes to stdout: a pipe carries it.
    assert made.stdout.count("\n") == 1
    joined = b.ok("join", "-", *here(b), given=made.stdout)
    assert joined.stdout == ""
    for host, name in ((a, "b"), (b, "a")):
        assert set(host.files()) == {
            "gateway.yaml",
            f"keys/{name}.in.key",
            f"keys/{name}.out.key",
        }
        assert all(path.stat().st_mode & 0o077 == 0 for path in host.config.rglob("*"))
    for text in (made.stderr, joined.stderr):
        for key in (a.config / "keys").iterdir():
            assert key.read_text().splitlines()[-1] not in text
    assert_carries(a, b)


def test_a_sealed_line_and_further_tunnels(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    secret = a.folder / "secret"
    secret.write_text("correct horse\n")
    sealed = ("--passphrase-file", str(secret))
    made = a.ok("invite", "b", *NETS, "--own-name", "a", "--sas", "2", *sealed, *here(a)).stdout
    assert "sealed" in b.fails("join", made.strip(), *here(b))
    b.ok("join", made.strip(), *sealed, *here(b))
    # A further tunnel beside the first, and its name once more.
    more = ("--local-net", "10.1.0.0/24", "--remote-net", "10.3.0.0/24", "--own-name", "a")
    before = a.files()
    a.ok("invite", "c", *more, *here(a))
    assert set(a.files()) - set(before) == {"c.yaml", "keys/c.in.key", "keys/c.out.key"}
    a.ok("config", "check", str(a.config))
    before = a.files()
    assert "already" in a.fails("invite", "c", *more, *here(a))
    assert "already" in a.fails("invite", "b", *more, *here(a))
    assert a.files() == before
    assert_carries(a, b)


def test_what_is_refused_leaves_nothing(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    for words, status in (
        (("b", "--local-net", "10.1.0.0/24"), 2),
        (("../b", *NETS), 2),
        (("b", *NETS, "--own-name", "b"), 1),
        (("b", *NETS, "--hours", "0"), 2),
        # No pair of one family.
        (("b", "--local-net", "10.1.0.0/24", "--remote-net", "fd00::/64", "--own-name", "a"), 1),
        (("b", *NETS, "--own-name", "a", "--passphrase-file", str(a.folder / "none")), 1),
    ):
        a.fails("invite", *words, *here(a), status=status)
        assert not a.config.exists() or a.files() == {}
    line = a.ok("invite", "b", *NETS, "--own-name", "a", *here(a)).stdout.strip()
    for words, given, status in (
        ((line[:-3],), "", 1),
        (("-",), "", 1),
        (("espgw1.",), "", 1),
        ((line, "--name", "x"), "", 2),
        (("ssh:",), "", 2),
        (("ssh:-oProxyCommand=id", *MIRRORED), "", 1),
    ):
        said = b.fails("join", *words, *here(b), given=given, status=status)
        assert line[20:60] not in said
        assert not b.config.exists() or b.files() == {}


def test_by_ssh_both_ends_are_made_and_started(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    # The hosts of this test have one name and no /etc of their own.
    a.shim("esp-gw", f"{SHIMS['esp-gw']} --own-name a --config {a.config}")
    b.ok("join", "ssh:pi@a", *MIRRORED, "--name", "b", *here(b))
    for host in hosts:
        assert (host.folder / "started").read_text() == "enable --now esp-gw\n"
    a.shim("esp-gw", SHIMS["esp-gw"])
    assert_carries(a, b)
