"""sd_notify over real sockets, and the unit files as parsed by systemd itself."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from esp_gw.daemon.priority import CONTROL_NICE
from esp_gw.daemon.systemd import Notifier, watchdog_interval
from esp_gw.desired import GatewaySettings
from esp_gw.engine.refusals import LATENCY_DEVICE, TUN_DEVICE
from esp_gw.errors import WRONG_CONFIG, WRONG_STATE
from esp_gw.tune.record import FOLDER, RecordFile

UNITS = Path(__file__).parents[3] / "systemd"
SERVICE = UNITS / "esp-gw.service"
GUARD = UNITS / "esp-gw-guard.service"
TUNE = UNITS / "esp-gw-tune.service"
AF_ALG = UNITS / "af-alg.conf"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Yield a socket like systemd's, and its value of $NOTIFY_SOCKET."""
    path = f"@{secrets.token_hex(8)}" if request.param == "abstract" else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path.replace("@", "\0", 1) if path[0] == "@" else path)
        receiver.settimeout(5)
        yield receiver, path


def test_each_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    receiver, path = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": path})
    notifier.ready("2 tunnels")
    notifier.stopping()
    notifier.watchdog()
    received = [receiver.recv(4096) for _ in range(3)]
    assert received == [
        b"READY=1\nSTATUS=2 tunnels",
        b"STOPPING=1",
        b"WATCHDOG=1",
    ]


def test_a_status_is_sent_only_when_it_has_changed(manager: tuple[socket.socket, str]) -> None:
    receiver, path = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": path})
    notifier.ready("2 SAs")
    for text in ("2 SAs", "2 SAs; esp0\nis down", "2 SAs; esp0\nis down", "2 SAs"):
        notifier.status(text)
    notifier.stopping()
    received = [receiver.recv(4096) for _ in range(4)]
    assert received == [
        b"READY=1\nSTATUS=2 SAs",
        b"STATUS=2 SAs; esp0 is down",
        b"STATUS=2 SAs",
        b"STOPPING=1",
    ]


def test_a_start_that_waits_asks_for_its_time_and_the_usual_one(
    manager: tuple[socket.socket, str],
) -> None:
    receiver, path = manager
    Notifier.from_environment({"NOTIFY_SOCKET": path}).waiting("trying again\nwithin 8 s", 8)
    assert receiver.recv(4096) == (b"STATUS=trying again within 8 s\nEXTEND_TIMEOUT_USEC=98000000")


def test_reloading_carries_the_monotonic_time_in_microseconds(
    manager: tuple[socket.socket, str],
) -> None:
    receiver, path = manager
    before = time.monotonic()
    Notifier.from_environment({"NOTIFY_SOCKET": path}).reloading()
    after = time.monotonic()
    reloading, usec = receiver.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    name, value = usec.split("=")
    assert name == "MONOTONIC_USEC"
    assert int(before * 1e6) <= int(value) <= after * 1e6


def test_a_status_text_can_not_smuggle_another_assignment(
    manager: tuple[socket.socket, str],
) -> None:
    receiver, path = manager
    Notifier.from_environment({"NOTIFY_SOCKET": path}).ready("up\nSTOPPING=1\r\nMAINPID=1\udcff")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=up STOPPING=1 MAINPID=1?"


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "@",
        "/",
        "vsock:2:1234",
        "vsock-stream:2:1234",
        "relative",
        "/nonexistent/notify",
        "/" + "x" * 200,
        "@" + "x" * 200,
        "/a\0b",
    ],
)
def test_without_a_usable_address_everything_is_silent(address: str | None) -> None:
    notifier = Notifier.from_environment({} if address is None else {"NOTIFY_SOCKET": address})
    notifier.ready("up")
    notifier.ready("up")
    notifier.reloading()
    notifier.watchdog()
    notifier.stopping()


def test_a_manager_that_is_gone_or_does_not_read_is_no_error(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": path})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        for _ in range(2000):  # more than a queue of datagrams holds: a blocking send would hang
            notifier.watchdog()
        assert receiver.recv(100) == b"WATCHDOG=1"
    notifier.watchdog()


def test_the_environment_of_the_process_is_the_default(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, path = manager
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    Notifier.from_environment().stopping()
    assert receiver.recv(100) == b"STOPPING=1"
    assert watchdog_interval() == 1.0


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_a_period_when_it_is_on(
    environ: dict[str, str], interval: float | None
) -> None:
    assert watchdog_interval(environ) == interval


# The unit files


def settings_of(path: Path) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            settings.setdefault(name, []).append(value)
    return settings


def verify(text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze verify` on a unit, with an existing program in ExecStart."""
    copy = directory / SERVICE.name
    for path, content in ((copy, text), (directory / GUARD.name, GUARD.read_text())):
        path.write_text(content.replace("/opt/esp-gw/bin/esp-gw", "/bin/true"))
    return analyze("verify", "--man=no", str(copy))


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    text = SERVICE.read_text()
    assert "ExecStart=/opt/esp-gw/bin/esp-gw run --config /etc/esp-gw\n" in text
    assert "ExecReload=/opt/esp-gw/bin/esp-gw reload --config /etc/esp-gw\n" in text
    verdict = verify(text, tmp_path)
    # It also loads the units that this one needs, and may report faults of the host in them.
    assert [line for line in verdict.stderr.splitlines() if "esp-gw" in line] == []
    assert verdict.returncode == 0, verdict.stderr


def test_systemd_would_find_a_fault(tmp_path: Path) -> None:
    text = SERVICE.read_text().replace("WatchdogSec=30", "WatchdogSec=often")
    assert "esp-gw.service:" in verify(text, tmp_path).stderr


@pytest.mark.parametrize(("family", "faults"), [("AF_ALG", 0), ("AF_ALGEBRA", 1)])
def test_af_alg_is_only_in_a_drop_in_that_systemd_reads_with_the_unit(
    tmp_path: Path, family: str, faults: int
) -> None:
    assert "AF_ALG" not in SERVICE.read_text()
    assert settings_of(AF_ALG) == {"RestrictAddressFamilies": ["AF_ALG"]}
    # The drop-in adds to the unit's list; an empty value would reset it (systemd.exec(5)).
    drop_in = tmp_path / "esp-gw.service.d" / AF_ALG.name
    drop_in.parent.mkdir()
    drop_in.write_text(AF_ALG.read_text().replace("=AF_ALG", f"={family}"))
    verdict = verify(SERVICE.read_text(), tmp_path)
    lines = [line for line in verdict.stderr.splitlines() if "esp-gw" in line]
    assert len(lines) == faults, lines


@pytest.mark.parametrize("unit", [SERVICE, GUARD, TUNE], ids=lambda unit: unit.name)
def test_the_exposure_of_the_service_is_low(unit: Path) -> None:
    security = analyze("security", "--offline=yes", "--no-pager", str(unit))
    score = re.search(rf"exposure level for {unit.name}: ([0-9.]+)", security.stdout)
    assert score is not None, security.stderr
    assert float(score[1]) <= 2.5


def test_the_unit_of_tune_makes_again_what_is_on_record_and_has_one_capability(
    tmp_path: Path,
) -> None:
    settings = settings_of(TUNE)
    assert settings["ExecStart"] == ["/opt/esp-gw/bin/esp-gw tune --reapply"]
    assert settings["ConditionPathExists"] == [str(RecordFile(Path("/") / FOLDER).path)]
    assert settings["StateDirectory"] == [FOLDER.name]
    assert settings["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]
    assert settings["RestrictAddressFamilies"] == ["AF_NETLINK"]
    # Each of these sets the governor at a boot.
    after = {name for line in settings["After"] for name in line.split()}
    assert after >= {
        *("systemd-sysctl.service", "raspi-config.service", "cpufrequtils.service"),
        *("loadcpufreq.service", "tuned.service", "power-profiles-daemon.service"),
    }
    # A late network keeps no gateway waiting; enabled by nothing but 'esp-gw tune'.
    assert "Before" not in settings
    assert TUNE.name not in SERVICE.read_text()
    copy = tmp_path / TUNE.name
    copy.write_text(TUNE.read_text().replace("/opt/esp-gw/bin/esp-gw", "/bin/true"))
    verdict = analyze("verify", "--man=no", str(copy))
    assert [line for line in verdict.stderr.splitlines() if "esp-gw-tune" in line] == []


def test_the_guard_is_up_before_the_network_and_its_failure_does_not_keep_the_gateway_away() -> (
    None
):
    guard, gateway = settings_of(GUARD), settings_of(SERVICE)
    assert guard["DefaultDependencies"] == ["no"]
    assert "network-pre.target" in guard["Before"][0].split()
    assert guard["Wants"] == ["network-pre.target"]
    assert {"local-fs.target", "nftables.service"} <= set(guard["After"][0].split())
    assert GatewaySettings().state_dir in guard["RequiresMountsFor"][0].split()
    assert GUARD.name in gateway["Wants"]
    assert "Requires" not in gateway
    assert GUARD.name in gateway["After"][0].split()
    assert gateway["Also"] == [GUARD.name]
    assert (guard["User"], guard["StateDirectory"]) == (gateway["User"], gateway["StateDirectory"])
    assert guard["AmbientCapabilities"] == guard["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]


def test_the_unit_keeps_keys_out_of_dumps_and_swap_and_has_two_capabilities() -> None:
    settings = settings_of(SERVICE)
    assert settings["LimitCORE"] == ["0"]
    assert settings["LimitMEMLOCK"] == ["infinity"]
    assert settings["UMask"] == ["0077"]
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert [set(value.split()) for value in settings[name]] == [
            {"CAP_NET_ADMIN", "CAP_NET_RAW"}
        ]


def test_the_unit_opens_two_devices_and_udev_gives_one_of_them_to_its_group() -> None:
    settings = settings_of(SERVICE)
    assert settings["DevicePolicy"] == ["closed"]
    assert settings["DeviceAllow"] == [f"{TUN_DEVICE} rw", f"{LATENCY_DEVICE} rw"]
    (rule,) = [
        line
        for line in (UNITS / "esp-gw.udev.rules").read_text().splitlines()
        if not line.startswith("#")
    ]
    name = LATENCY_DEVICE.removeprefix("/dev/")
    assert rule.split(", ") == [
        'SUBSYSTEM=="misc"',
        f'KERNEL=="{name}"',
        f'GROUP="{settings["Group"][0]}"',
        'MODE="0660"',
    ]


def test_the_unit_lets_lane_0_and_the_control_plane_run_before_the_other_workers() -> None:
    (limit,) = settings_of(SERVICE)["LimitNICE"]
    # Signed, or systemd takes it as the raw value of RLIMIT_NICE. The engine asks for -11.
    assert limit == "-11"
    assert int(limit) < CONTROL_NICE


def test_the_unit_gives_up_only_where_a_person_has_to_act() -> None:
    settings = settings_of(SERVICE)
    assert settings["Restart"] == ["on-failure"]
    assert settings["StartLimitIntervalSec"] == ["0"]
    usage = click.UsageError("").exit_code
    assert settings["RestartPreventExitStatus"] == [f"{usage} {WRONG_STATE} {WRONG_CONFIG}"]
    # The tries are counted in the runtime directory.
    assert settings["RuntimeDirectoryPreserve"] == ["restart"]


def test_the_units_directories_are_the_gateways_defaults() -> None:
    settings, defaults = settings_of(SERVICE), GatewaySettings()
    assert [f"/var/lib/{settings['StateDirectory'][0]}"] == [defaults.state_dir]
    assert Path(defaults.control_socket).parent == Path("/run", settings["RuntimeDirectory"][0])
    assert settings["StateDirectoryMode"] == ["0700"]
    assert settings["RuntimeDirectoryMode"] == ["0750"]


def test_user_and_directories_are_the_same_in_all_files() -> None:
    settings = settings_of(SERVICE)
    assert settings["User"] == settings["Group"] == ["esp-gw"]
    users = [
        line.split()[:2]
        for line in (UNITS / "esp-gw.sysusers.conf").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert users == [["u", "esp-gw"]]
    made = {
        tuple(line.split())
        for line in (UNITS / "esp-gw.tmpfiles.conf").read_text().splitlines()
        if not line.startswith("#")
    }
    assert made == {
        ("d", "/etc/esp-gw", "0750", "root", "esp-gw"),
        ("d", "/etc/esp-gw/keys", "0750", "root", "esp-gw"),
        ("d", GatewaySettings().state_dir, "0700", "esp-gw", "esp-gw"),
        ("z-", "/sys/devices/virtual/dmi/id/product_uuid", "0440", "root", "esp-gw", "-"),
    }
