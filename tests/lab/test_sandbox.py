"""The daemon makes no system call in normal running that its unit denies."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from pathlib import Path

from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import MakePair, edit, ping, until, write_key
from tests.support.manager import managed
from tests.support.sandbox import calls, denied

USER = pwd.getpwnam("nobody")
# The service's own capabilities, and one to read the interpreter and a TUN device of root.
CAPABILITIES = "-all,+net_admin,+net_raw,+dac_override"


def as_the_service(pair: GatewayPair, trace: Path) -> list[str]:
    """Return a command that runs another one as the unit's user, traced; its group is `esp-gw`."""
    folder = pair.a.folder
    (folder / "group").write_text(f"root:x:0:\nesp-gw:x:{USER.pw_gid}:\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, USER.pw_uid, USER.pw_gid)
    script = 'mount --bind "$1" /etc/group && shift && exec "$@"'
    return [
        *("sh", "-c", script, "-", str(folder / "group")),
        *("setpriv", f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups"),
        *(f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}", "--no-new-privs"),
        *("strace", "-f", "-A", "-o", str(trace)),
    ]


def live(pair: GatewayPair, command: list[str], tmp_path: Path) -> None:
    """Start, carry, add, explain, reload, refuse, and stop a gateway with a hook."""
    gateway = pair.a
    hooked = gateway.folder / "hooked"
    # The hook can't read where the service may.
    for each in hooked.parents:
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    program = ["/bin/cp", "/proc/self/status", str(hooked)]
    edit(gateway, lambda config: config["gateway"].update(hook=program))
    key = write_key(tmp_path / "more.key").read_text().strip()
    with managed(gateway) as service:
        service.launch(before=command, watchdog_usec=2_000_000)
        service.until_told("READY=1")
        pair.b.start()
        assert ping(gateway.namespace, pair.plan.inner(1), count=3) == 3
        gateway.call(
            "AddSa", name="more/in", direction="inbound", spi=0x9001, local="192.0.2.1",
            remote="192.0.2.2", local_ts=["10.1.8.0/24"], remote_ts=["10.2.8.0/24"], key=key,
        )  # fmt: skip
        gateway.call("Reload")
        told = gateway.call("Explain", source="10.1.0.1", destination="10.2.0.1")
        assert (told["verdict"], told["tunnel"]) == ("carried", "pi-b")
        assert [step["state"] for step in told["steps"] if step["state"] != "ok"] == []
        gateway.call("ExplainDrops")
        until(lambda: hooked.exists() and "CapEff" in hooked.read_text(), "the hook ran")
        good = gateway.config.read_text()
        gateway.config.write_text(good + "colour: blue\n")
        pid = int(gateway.call("GetStatus")["pid"])
        os.kill(pid, signal.SIGHUP)
        service.until_status("not reloaded")
        gateway.config.write_text(good)
        os.kill(pid, signal.SIGHUP)
        until(lambda: service.told() and "not reloaded" not in service.status, "reloaded")
        # Removed and repaired: the watch works, too.
        gateway.namespace.ip("rule", "del", "table", "4500")
        service.until_status("another program removed")
        reload = (sys.executable, "-m", "esp_gw.cli.main", "reload", "--config")
        gateway.namespace.run(*command, *reload, str(gateway.config))
        gateway.call("DeleteSa", name="more/in")
        gateway.call("ListTunnels")
        gateway.call("GetStats")
        os.kill(pid, signal.SIGTERM)
        assert service.exit_status() == 0


def test_normal_running_needs_nothing_that_the_unit_denies(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair, trace = make_pair(), tmp_path / "run-pi-a" / "trace"
    live(pair, as_the_service(pair, trace), tmp_path)
    made = trace.read_text()
    assert {"execve", "sendto", "mlockall", "exit_group"} <= calls(made)
    assert denied(made) == set()
    # The gateway's own capabilities are ambient, and the hook has none of them.
    assert "CapEff:\t0000000000000000" in (tmp_path / "run-pi-a" / "hooked").read_text()


def test_a_trace_shows_what_the_unit_denies() -> None:
    assert denied(
        """\
7 openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3
7 fchownat(AT_FDCWD, "x", -1, 4242, 0) = 0
8 socket(AF_PACKET, SOCK_RAW, 0) = 4
8 socket(AF_ALG, SOCK_SEQPACKET, 0) = -1 EAFNOSUPPORT (Address family not supported)
8 mmap(NULL, 4096, PROT_READ|PROT_WRITE|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f
8 mmap(NULL, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE, 3, 0) = 0x7f
8 mprotect(0x7f, 4096, PROT_READ|PROT_EXEC) = 0
8 add_key("user", "x", "y", 1, -1) = 5
8 <... read resumed>) = 4
8 --- SIGHUP {si_signo=SIGHUP} ---
"""
    ) == {"fchownat", "socket(AF_PACKET)", "mmap(PROT_EXEC)", "mprotect(PROT_EXEC)", "add_key"}
