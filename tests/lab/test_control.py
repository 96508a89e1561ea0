"""The command line against real daemons: additions carry traffic, persist, and can be removed."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, ControlServer
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.traffic import iperf_server
from tests.support.labtools import (
    MakePair,
    carry_tcp,
    configured_sa,
    drops,
    forwarding,
    ping,
    sas,
    write_key,
)

pytestmark = pytest.mark.either_engine

A_INNER, B_INNER = "10.1.8.1", "10.2.8.1"


def add_sas(pair: GatewayPair, folder: Path) -> None:
    """Add a second pair of SAs, for 10.1.8.0/24 and 10.2.8.0/24, and a policy at each end."""
    there, back = write_key(folder / "there.key"), write_key(folder / "back.key")
    for gateway, inner, outward, spis, keys in (
        (pair.a, A_INNER, ("1", "2"), ("0x8001", "0x8002"), (there, back)),
        (pair.b, B_INNER, ("2", "1"), ("0x8002", "0x8001"), (back, there)),
    ):
        add_address(gateway.namespace, f"{inner}/32", "lo")
        local, remote = (f"192.0.2.{side}" for side in outward)
        nets = [f"10.{side}.8.0/24" for side in outward]
        for name, direction, spi, key in (
            ("more/out", "outbound", spis[0], keys[0]),
            ("more/in", "inbound", spis[1], keys[1]),
        ):
            gateway.cli(
                *("sa", "add", name, "--direction", direction, "--spi", spi),
                *("--local", local, "--remote", remote, "--key-file", str(key)),
                *("--local-ts", nets[0], "--remote-ts", nets[1]),
            )
        gateway.cli(
            *("policy", "add", "more", "--action", "protect", "--sa", "more/out"),
            *("--local-ts", nets[0], "--remote-ts", nets[1]),
        )


def refused(gateway: LabGateway, *arguments: str) -> str:
    """Run a command that must fail with status 1; return its one-line error."""
    result = gateway.cli(*arguments, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    return line


def test_added_sas_carry_traffic_survive_a_kill_and_can_be_deleted(
    pair: GatewayPair, tmp_path: Path
) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    add_sas(pair, tmp_path)
    assert ping(a, B_INNER, count=5) == 5
    assert sas(pair.a)["more/out"]["packets"] == 5
    assert sas(pair.b)["more/in"]["packets"] == 5
    seq = sas(pair.a)["more/out"]["seq"]
    pair.a.kill()
    pair.a.start()
    assert sas(pair.a)["more/out"]["seq"] > seq
    assert ping(a, B_INNER, count=5) == 5
    assert ping(b, A_INNER, count=5) == 5
    pair.a.stop()
    pair.a.start()
    assert ping(a, B_INNER, count=5) == 5

    assert "more/out" in refused(pair.a, "sa", "delete", "more/out")  # a policy needs it
    pair.a.cli("policy", "delete", "more")
    pair.a.cli("sa", "delete", "more/out")
    assert set(sas(pair.a)) == {"pi-b/out", "pi-b/in", "more/in"}
    assert "10.2.8.0/24" not in a.ip("route", "show", "table", "4500")
    assert ping(a, B_INNER, count=2) == 0
    assert ping(a, pair.plan.inner(1), count=2) == 2


def test_flush_removes_additions_and_keeps_the_configuration(
    pair: GatewayPair, tmp_path: Path
) -> None:
    add_sas(pair, tmp_path)
    assert set(pair.a.ask("sa", "flush", "--yes")["deleted"]) == {"more/out", "more/in"}
    assert set(sas(pair.a)) == {"pi-b/out", "pi-b/in"}
    assert [policy["name"] for policy in pair.a.ask("policy", "list")["policies"]] == ["pi-b"]
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2
    pair.a.stop()
    pair.a.start()
    assert set(sas(pair.a)) == {"pi-b/out", "pi-b/in"}


def test_sas_and_policies_of_the_configuration_cannot_be_deleted(pair: GatewayPair) -> None:
    assert "comes from the configuration" in refused(pair.a, "sa", "delete", "pi-b/out")
    assert "comes from the configuration" in refused(pair.a, "policy", "delete", "pi-b")
    assert "there is no SA nobody" in refused(pair.a, "sa", "delete", "nobody")
    assert "exists already" in refused(
        pair.a, "policy", "add", "pi-b", "--action", "discard", "--remote-ts", "10.8.0.0/24"
    )
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2


def _sa_add(direction: str, key: Path, spi: str = "0x9001") -> list[str]:
    return [
        *("sa", "add", "again", "--direction", direction, "--spi", spi, "--key-file", str(key)),
        *("--local", "192.0.2.1", "--remote", "192.0.2.2"),
        *("--local-ts", "10.1.9.0/24", "--remote-ts", "10.2.9.0/24"),
    ]


@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_a_key_that_is_in_use_is_refused(pair: GatewayPair, tmp_path: Path, direction: str) -> None:
    add_sas(pair, tmp_path)
    ours = pair.a.config.parent / "keys"
    for key in (ours / "pi-b.out.key", ours / "pi-b.in.key", tmp_path / "there.key"):
        assert "repeat an IV" in refused(pair.a, *_sa_add(direction, key))
    assert "again" not in sas(pair.a)
    assert ping(pair.a.namespace, B_INNER, count=2) == 2


def test_a_key_continues_its_numbers_and_never_changes_direction(
    pair: GatewayPair, tmp_path: Path
) -> None:
    add_sas(pair, tmp_path)
    assert ping(pair.a.namespace, B_INNER, count=5) == 5
    pair.a.cli("sa", "flush", "--yes")
    assert "outbound" in refused(pair.a, *_sa_add("inbound", tmp_path / "there.key"))
    assert "inbound" in refused(pair.a, *_sa_add("outbound", tmp_path / "back.key"))
    pair.a.cli(*_sa_add("outbound", tmp_path / "there.key"))
    assert sas(pair.a)["again"]["seq"] == 6
    assert "again" in sas(pair.a)


def test_a_bypass_policy_keeps_traffic_out_of_the_tunnel(pair: GatewayPair) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    # Cleartext traffic between the two takes ordinary routes.
    a.ip("route", "add", "10.2.0.0/24", "via", "192.0.2.2", "src", "192.0.2.1")
    b.ip("route", "add", "10.1.0.0/24", "via", "192.0.2.1")
    assert "before it" in refused(pair.a, *_bypass())
    pair.a.cli(*_bypass(), "--before", "pi-b")
    assert [p["name"] for p in pair.a.ask("policy", "list")["policies"]] == ["clear", "pi-b"]
    assert ping(a, "10.2.0.1", count=3) == 3
    assert pair.a.ask("stats")["packets_out"] == 0
    carry_tcp(a, b, "10.2.0.1", "-B", "10.1.0.1")
    assert pair.a.ask("stats")["packets_out"] > 0
    sent = pair.a.ask("stats")["packets_out"]
    pair.a.cli("policy", "delete", "clear")
    assert ping(a, "10.2.0.1", count=3) == 3
    assert pair.a.ask("stats")["packets_out"] == sent + 3


def _bypass() -> list[str]:
    return [
        *("policy", "add", "clear", "--action", "bypass", "--protocol", "icmp"),
        *("--remote-ts", "10.2.0.0/24"),
    ]


def test_a_discard_policy_and_a_packet_without_policy_are_counted(pair: GatewayPair) -> None:
    a = pair.a.namespace
    pair.a.cli(
        *("policy", "add", "quiet", "--action", "discard", "--remote-ts", "10.2.0.128/25"),
        *("--before", "pi-b"),
    )
    pair.a.cli("policy", "add", "gone", "--action", "discard", "--remote-ts", "10.7.0.0/24")
    assert ping(a, "10.2.0.130", count=3) == 0
    assert ping(a, "10.7.0.1", count=2) == 0
    assert drops(pair.a) == {"policy-discard": 5}
    assert ping(a, "10.2.0.1", count=2) == 2
    # A source that no policy matches.
    a.run("ping", "-c", "1", "-W", "1", "-I", "192.0.2.1", "10.2.0.1", check=False)
    assert drops(pair.a) == {"policy-discard": 5, "no-policy": 1}
    assert pair.a.ask("stats")["packets_out"] == 2


READING = [
    ("status",),
    ("stats",),
    ("tunnel", "list"),
    ("sa", "list"),
    ("sa", "show", "pi-b/out"),
    ("policy", "list"),
    ("reload",),
]


def test_no_key_appears_anywhere_unless_root_asks_for_it(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair()
    # With an environment of its own, which is looked at below, it is no fork.
    pair.a.env["LC_ALL"] = "C"
    pair.start()
    forwarding(pair.a.namespace)
    add_sas(pair, tmp_path)
    ping(pair.a.namespace, B_INNER, count=3)
    secrets = [configured_sa(pair.a, f"pi-b/{way}").keymat for way in ("out", "in")]
    hexes = [keymat.to_bytes().hex() for keymat in secrets]
    hexes += [(tmp_path / name).read_text().strip() for name in ("there.key", "back.key")]
    seen = []
    for command in READING:
        for options in ((), ("--json",)):
            result = pair.a.cli(*command, *options)
            assert result.stdout
            seen.append(result.stdout + result.stderr)
            if options:
                json.loads(result.stdout)
    seen.append(pair.a.log.read_text())
    process = pair.a.process
    assert process is not None
    seen += [
        Path(f"/proc/{process.pid}/{name}").read_bytes().decode(errors="replace")
        for name in ("cmdline", "environ")
    ]
    text = "\n".join(seen).lower()
    for key in hexes:
        assert key[:16] not in text
        assert str(bytes.fromhex(key))[2:18].lower() not in text
    # The state directory holds the CLI's additions, readable only by root; the ledger has no key.
    for path in pair.a.folder.glob("ledger*"):
        assert all(bytes.fromhex(key)[:8] not in path.read_bytes() for key in hexes)

    revealed = pair.a.cli("sa", "show", "pi-b/out", "--reveal-keys").stdout
    assert hexes[0] in revealed
    assert "a key was revealed" in pair.a.log.read_text()
    assert hexes[0] not in pair.a.log.read_text()


def test_files_are_not_accessible_to_others(pair: GatewayPair, tmp_path: Path) -> None:
    add_sas(pair, tmp_path)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in pair.a.folder.iterdir()
        if path.name not in ("log", "notify.sock")
    }
    assert modes.pop("control.sock") == 0o660
    assert {"ledger.db", "added.json"} <= set(modes)
    assert set(modes.values()) == {0o600}


STRANGER = """
import os, socket, sys
folder, name = os.path.split(sys.argv[1])
os.chdir(folder)  # the folders above are closed to others
os.setgroups([int(group) for group in sys.argv[2:]])
os.setgid(65534)
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(name)
except PermissionError:
    print("no permission")
else:
    try:
        s.sendall(b'{"method": "io.esp_gw.ListSas"}\\n')
    except BrokenPipeError:
        pass  # refused before the request was there
    print(s.makefile().readline())
"""


def test_a_stranger_is_refused_by_the_socket_file_and_by_the_daemon(pair: GatewayPair) -> None:
    pair.a.folder.chmod(0o755)
    group = str(pair.a.socket.stat().st_gid)
    answers = [
        pair.a.namespace.run(sys.executable, "-c", STRANGER, str(pair.a.socket), *groups).stdout
        for groups in ((), (group,))  # the second may open the socket, but is not a member
    ]
    assert answers[0] == "no permission\n"
    assert json.loads(answers[1])["error"] == "io.esp_gw.PermissionDenied"
    assert "pi-b" not in answers[1]


def test_control_answers_while_traffic_runs_at_full_rate(pair: GatewayPair) -> None:
    target = pair.plan.inner(1)
    forwarding(pair.a.namespace, pair.b.namespace)
    with iperf_server(pair.b.namespace, target):
        # Ended below, however long the answers take.
        client = pair.a.namespace.start("iperf3", "-c", target, "-t", "300", "-P", "4")
        for command in READING * 2:
            for gateway in (pair.a, pair.b):
                name = "pi-a/out" if gateway is pair.b else "pi-b/out"
                words = [name if word == "pi-b/out" else word for word in command]
                assert gateway.cli(*words, check=False).returncode == 0
        assert client.poll() is None
        client.terminate()
        client.wait()


CROWD = """
import os, socket, sys
path, uid, gid, half = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
os.setgroups([]); os.setgid(gid); os.setuid(uid)
kept = []
for _ in range(200):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.send(half)
    kept.append(sock)
print("connected", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def crowd(path: Path, uid: int, gid: int, sent: str) -> Iterator[None]:
    """Hold 200 connections of a user that have sent the same."""
    command = (sys.executable, "-I", "-S", "-c", CROWD, str(path), str(uid), str(gid), sent)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout is not None
            assert it.stdout.readline() == "connected\n"
            yield
        finally:
            it.kill()


@pytest.mark.parametrize("sent", ["", '{"method":'], ids=["silent", "half a line"])
def test_status_is_answered_while_root_holds_200_idle_connections(
    pair: GatewayPair, sent: str
) -> None:
    with crowd(pair.a.socket, 0, 0, sent), crowd(pair.a.socket, 0, 0, sent):
        assert pair.a.ask("status")["sas"] == 2
        pair.a.cli("reload")
    assert "Traceback" not in pair.a.log.read_text()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder where other users may look for a socket."""
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def caller_of(path: Path, uid: int, gid: int) -> int:
    """Ask as a user of a group, by the client of the command line; return who the server saw."""
    script = "import sys; from esp_gw.control.client import call; from pathlib import Path;"
    script += "print(call(Path(sys.argv[1]), 'Who', {})['uid'])"
    user = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    command = (*user, sys.executable, "-c", script, str(path))
    run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


async def test_users_of_the_group_lock_out_neither_root_nor_each_other(open_folder: Path) -> None:
    path, group = open_folder / "control.sock", grp.getgrall()[-1]

    async def who(_parameters: dict[str, object], caller: Caller) -> dict[str, object]:
        return {"uid": caller.uid}

    def crowded() -> list[int]:
        gid = group.gr_gid
        with crowd(path, 65530, gid, ""), crowd(path, 65531, gid, "{"):
            return [caller_of(path, uid, gid) for uid in (0, 65530, 65532)]

    server = ControlServer(path, {PREFIX + "Who": who}, group.gr_name)
    await server.start()
    try:
        assert await asyncio.to_thread(crowded) == [0, 65530, 65532]
    finally:
        await server.close()
