"""`esp-gw tune` on machines in a folder: what it shows, makes, takes back and refuses."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from esp_gw.cli import outgoing, tuning
from esp_gw.cli.main import main
from esp_gw.demo import comparison
from esp_gw.demo.comparison import Sample
from esp_gw.errors import LabError
from esp_gw.tune.knobs import Place
from esp_gw.tune.places import Places
from tests.support.commands import Capture, fail, run
from tests.support.fake_machine import FakeMachine, container, pi4, pi5

GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test here touches this machine: a folder without anything stands for it."""
    use(FakeMachine(tmp_path / "nothing"), monkeypatch)


def use(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, *cards: str) -> FakeMachine:
    monkeypatch.setattr(tuning, "ROOT", machine.root)
    monkeypatch.setattr(tuning, "Places", lambda root: Places(root, lambda: machine.ethtool))
    monkeypatch.setattr(outgoing, "outgoing_cards", lambda *_: list(cards))
    monkeypatch.setattr("esp_gw.cli.tune.is_ordinary_user", lambda: False)
    (machine.root / "var/lib").mkdir(parents=True)
    return machine


@pytest.fixture
def pi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    return use(pi4(tmp_path / "pi"), monkeypatch, "eth0")


def tune(capsys: Capture, tmp_path: Path, *options: str, status: int = 0) -> str:
    return run(
        capsys,
        *("--socket", str(tmp_path / "none.sock"), "tune", "--config", str(tmp_path / "none")),
        *options,
        status=status,
    )


def shown(capsys: Capture, tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tune(capsys, tmp_path, "--json"))
    return document


def test_it_shows_each_setting_with_its_reason_and_changes_nothing(
    pi: FakeMachine, tmp_path: Path, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in pi.root.rglob("*") if path.is_file()}
    text = tune(capsys, tmp_path)
    assert "eth0: driver bcmgenet, 1 receive queue\n" in text
    assert "better: policy0 governor: ondemand -> performance\n      it raises the clock" in text
    assert "better: eth0 rx-0 rps_cpus: 0 -> e\n" in text
    assert "advice: eth0 saves energy between packets (EEE)" in text
    assert text.endswith("'sudo esp-gw tune --apply' makes them, also at each boot\n")
    assert before == {path: path.read_bytes() for path in pi.root.rglob("*") if path.is_file()}


def test_its_document_has_the_shape_of_the_reference(
    pi: FakeMachine, tmp_path: Path, capsys: Capture
) -> None:
    found = shown(capsys, tmp_path)
    assert found.keys() == {"cards", "settings", "advice"}
    assert found["cards"] == [{"name": "eth0", "driver": "bcmgenet"}]
    for each in found["settings"]:
        assert each.keys() == {"place", "topic", "now", "better", "why", "former"}
        assert each["former"] is None
    for each in found["advice"]:
        assert each.keys() == {"topic", "found", "todo"}
    wanted = [each for each in found["settings"] if each["now"] != each["better"]]
    assert len(wanted) == 5


def test_it_makes_shows_and_takes_back(pi: FakeMachine, tmp_path: Path, capsys: Capture) -> None:
    before = shown(capsys, tmp_path)
    text = tune(capsys, tmp_path, "--apply")
    assert "policy0 governor: ondemand -> performance\n" in text
    assert text.endswith("5 settings made; until the next boot: systemd doesn't run here\n")
    assert pi.read(GOVERNOR) == "performance"
    made = {each["place"]: each for each in shown(capsys, tmp_path)["settings"]}
    assert made["policy0 governor"]["former"] == "ondemand"
    text = tune(capsys, tmp_path)
    assert "made: policy0 governor: ondemand -> performance\n" in text
    assert "0 to change\n'sudo esp-gw tune --undo' takes back what was made\n" in text
    assert tune(capsys, tmp_path, "--apply").startswith("0 settings made; ")
    assert tune(capsys, tmp_path, "--undo").endswith("5 settings taken back\n")
    assert shown(capsys, tmp_path) == before
    assert tune(capsys, tmp_path, "--undo") == "0 settings taken back\n"


def test_what_was_not_taken_back_is_not_counted(
    pi: FakeMachine, tmp_path: Path, capsys: Capture
) -> None:
    tune(capsys, tmp_path, "--apply")
    (pi.root / "sys/class/net/eth0/queues/rx-0/rps_cpus").unlink()
    pi.write(GOVERNOR, "schedutil")
    text = tune(capsys, tmp_path, "--undo")
    assert "eth0 rx-0 rps_cpus: forgotten: No such file or directory\n" in text
    assert "policy0 governor: left at schedutil: somebody else has set it" in text
    assert text.endswith("\n3 settings taken back\n")


def test_steps_are_a_document_too(pi: FakeMachine, tmp_path: Path, capsys: Capture) -> None:
    made = json.loads(tune(capsys, tmp_path, "--apply", "--json"))
    assert made["kept"] == "until the next boot: systemd doesn't run here"
    assert {"place": "eth0 rx-0 rps_cpus", "done": True, "text": "0 -> e"} in made["steps"]
    pi.write(GOVERNOR, "ondemand")
    again = json.loads(tune(capsys, tmp_path, "--reapply", "--json"))
    assert again == {
        "steps": [
            {"place": "policy0 governor", "done": True, "text": "ondemand -> performance"},
        ],
        "kept": "",
    }
    assert len(json.loads(tune(capsys, tmp_path, "--undo", "--json"))["steps"]) == 5


def test_what_fails_is_a_line_and_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    machine = use(container(tmp_path / "container"), monkeypatch, "eth0")
    assert machine.ethtool.refuses == {"rx-gro"}
    text = tune(capsys, tmp_path, "--apply", status=1)
    assert "eth0 rx-gro feature: stays off, not on: Operation not supported\n" in text
    assert "1 setting made, 1 failed; " in text


def test_a_machine_whose_sys_is_read_only_is_told_so_for_each_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    class ReadOnly(Places):
        def write(self, place: Place, value: str) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    machine = use(container(tmp_path / "container"), monkeypatch, "eth0")
    monkeypatch.setattr(tuning, "Places", lambda root: ReadOnly(root, lambda: machine.ethtool))
    lines = tune(capsys, tmp_path, "--apply", status=1).splitlines()
    assert "eth0 rx-0 rps_cpus: stays 0, not 3: Read-only file system" in lines
    assert lines[-1] == "0 settings made, 2 failed"
    assert not (machine.root / "var/lib/esp-gw-tune/made.json").exists()
    assert tune(capsys, tmp_path, "--undo") == "0 settings taken back\n"


def test_settings_without_a_present_reason_are_shown_as_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    machine = use(pi5(tmp_path / "pi5"), monkeypatch, "eth0")
    tune(capsys, tmp_path, "--apply")
    # Another card is on the way now.
    monkeypatch.setattr(outgoing, "outgoing_cards", lambda *_: [])
    text = tune(capsys, tmp_path)
    told = (
        "made: eth0 tx-tcp-segmentation and 1 more feature: on -> off\n      it was made before\n"
    )
    assert told in text
    tune(capsys, tmp_path, "--undo")
    assert "tx-tcp-segmentation" in machine.ethtool.cards["eth0"].wanted


def test_parts_of_one_kind_share_a_line(pi: FakeMachine, tmp_path: Path, capsys: Capture) -> None:
    for number in range(1, 4):
        pi.governor(f"policy{number}", "ondemand")
    text = tune(capsys, tmp_path)
    assert "better: policy0 and 3 more governor: ondemand -> performance\n" in text


def test_a_screen_of_80_columns_has_no_longer_line(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.cli.output.terminal_width", lambda: 80)
    pi.write("sys/class/net/eth0/queues/tx-0/tx_timeout", "1")
    assert max(map(len, tune(capsys, tmp_path).splitlines())) <= 80


def test_a_small_screen_has_all_of_a_pi_4(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.cli.output.terminal_width", lambda: 80)
    for option in ((), ("--apply",), ()):
        lines = tune(capsys, tmp_path, *option).splitlines()
        assert len(lines) <= 23
    assert "made: eth0 rx-0 rps_cpus: 0 -> e" in lines


def test_two_at_a_time_are_one_too_many(pi: FakeMachine, tmp_path: Path, capsys: Capture) -> None:
    book = tuning._book()
    book.create()
    words = ("tune", "--config", str(tmp_path / "none"))
    with book.locked():
        for option in ("--apply", "--undo", "--reapply", "--measure"):
            text = fail(capsys, *words, option)
            assert text.endswith("is changing settings; wait until it has ended\n")
    assert pi.read(GOVERNOR) == "ondemand"
    tune(capsys, tmp_path, "--apply")


@pytest.mark.parametrize(
    "options",
    [
        ("--apply", "--undo"),
        ("--undo", "--measure"),
        ("--reapply", "--apply"),
        ("--undo", "--reapply"),
    ],
)
def test_options_that_exclude_each_other(capsys: Capture, options: tuple[str, ...]) -> None:
    assert "stand alone" in fail(capsys, "tune", *options, status=2)


def test_an_ordinary_user_is_told_to_use_sudo(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.cli.tune.is_ordinary_user", lambda: True)
    for options in ((), ("--apply",), ("--undo",), ("--measure",), ("--reapply",), ("--json",)):
        text = fail(capsys, "tune", *options)
        assert text.count("\n") == 1
        assert text.endswith("; use sudo\n")


def test_a_wrong_configuration_is_an_error(
    pi: FakeMachine, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/gateway.yaml").write_text("colour: blue\n")
    text = fail(capsys, "tune", "--apply", "--config", str(tmp_path / "wrong"), status=78)
    assert "colour" in text
    assert pi.read(GOVERNOR) == "ondemand"


def test_a_damaged_record_is_an_error_and_nothing_is_made(
    pi: FakeMachine, tmp_path: Path, capsys: Capture
) -> None:
    tune(capsys, tmp_path, "--apply")
    (path,) = (pi.root / "var/lib/esp-gw-tune").iterdir()
    path.write_text("{")
    for option in ("--apply", "--undo", "--reapply"):
        words = ("tune", "--config", str(tmp_path / "none"), option)
        text = fail(capsys, *words, status=65)
        assert text.count("\n") == 1
        assert "move it away" in text
    assert pi.read(GOVERNOR) == "performance"


def traffic(monkeypatch: pytest.MonkeyPatch, pi: FakeMachine) -> list[tuple[str, str]]:
    """Put figures that follow from the governor in place of traffic; return which were seen."""
    seen: list[tuple[str, str]] = []

    def compare(without: Any, with_it: Any) -> list[tuple[Sample, Sample]]:
        rounds = []
        for _ in range(3):
            without()
            slow = pi.read(GOVERNOR)
            with_it()
            seen.append((slow, pi.read(GOVERNOR)))
            rounds.append((Sample(2.0, 100.0), Sample(3.0, 50.0)))
        return rounds

    monkeypatch.setattr(comparison, "compare", compare)
    return seen


def test_it_measures_in_turn_and_leaves_what_was(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = traffic(monkeypatch, pi)
    text = tune(capsys, tmp_path, "--measure")
    assert seen == [("ondemand", "performance")] * 3
    assert pi.read(GOVERNOR) == "ondemand"
    assert text.splitlines()[:3] == [
        "MEDIAN OF 3     WITHOUT  WITH  RATIO",
        "TCP, Gbit/s           2     3   1.50",
        "round trip, us      100    50   0.50",
    ]
    assert "settings of eth0 had no part" in text


def test_it_measures_what_was_made_and_leaves_it_made(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = traffic(monkeypatch, pi)
    tune(capsys, tmp_path, "--apply")
    pi.write("proc/sys/net/core/netdev_max_backlog", "1000")
    found = json.loads(tune(capsys, tmp_path, "--measure", "--json"))
    assert seen == [("ondemand", "performance")] * 3
    assert found["medians"]["gbit_s"] == {"without": 2.0, "with": 3.0, "ratio": 1.5}
    assert found["rounds"][0] == {
        "without": {"gbit_s": 2.0, "rtt_us": 100.0},
        "with": {"gbit_s": 3.0, "rtt_us": 50.0},
    }
    assert pi.read(GOVERNOR) == "performance"
    # A setting that was not made before isn't now either.
    assert pi.read("proc/sys/net/core/netdev_max_backlog") == "1000"
    tune(capsys, tmp_path, "--undo")
    assert pi.read(GOVERNOR) == "ondemand"


def test_it_measures_and_keeps(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic(monkeypatch, pi)
    assert "5 settings made; " in tune(capsys, tmp_path, "--measure", "--apply")
    assert pi.read(GOVERNOR) == "performance"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("error", [LabError("iperf3 is not installed"), KeyboardInterrupt()])
def test_a_measurement_that_ends_early_leaves_what_was(
    pi: FakeMachine, tmp_path: Path, error: BaseException, keep: bool
) -> None:
    def compare(_without: Any, with_it: Any) -> None:
        with_it()
        raise error

    with pytest.raises(type(error)):
        tuning.measure(
            tmp_path / "none", tuning.Daemon(tmp_path), compare, keep=keep, as_json=False
        )  # type: ignore[arg-type]
    assert pi.read(GOVERNOR) == "ondemand"
    assert not (pi.root / "var/lib/esp-gw-tune/made.json").exists()


def killed(tmp_path: Path, phases: str, *, keep: bool = False) -> None:
    """Run a measurement that is killed, past any handler, after some of its phases."""

    def compare(without: Any, with_it: Any) -> None:
        for phase in phases.split():
            (with_it if phase == "with" else without)()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            daemon = tuning.Daemon(tmp_path)
            tuning.measure(tmp_path / "none", daemon, compare, keep=keep, as_json=False)  # type: ignore[arg-type]
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def tune_afterwards(capsys: Capture, tmp_path: Path, *options: str) -> str:
    """Run the command; return what it says on stderr."""
    socket, config = str(tmp_path / "none.sock"), str(tmp_path / "none")
    assert main(["--socket", socket, "tune", "--config", config, *options]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--json",), ("--apply",), ("--reapply",), ("--measure",)])
@pytest.mark.parametrize("phases", ["without", "without with", "without with without"])
def test_a_killed_measurement_loses_nothing_that_was_made(
    pi: FakeMachine,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    phases: str,
) -> None:
    tune(capsys, tmp_path, "--apply")
    made = tuning._book().load()
    killed(tmp_path, phases)
    assert tuning._book().load() == made
    traffic(monkeypatch, pi)
    tune_afterwards(capsys, tmp_path, *options)
    assert pi.read(GOVERNOR) == "performance"
    assert tuning._book().load() == made
    tune(capsys, tmp_path, "--undo")
    assert pi.read(GOVERNOR) == "ondemand"


@pytest.mark.parametrize("options", [(), ("--json",), ("--undo",), ("--reapply",), ("--measure",)])
def test_a_killed_measurement_keeps_nothing(
    pi: FakeMachine,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    killed(tmp_path, "without with", keep=True)
    assert pi.read(GOVERNOR) == "performance"
    # Nothing for the unit to make at a boot.
    assert not (pi.root / "var/lib/esp-gw-tune/made.json").exists()
    traffic(monkeypatch, pi)
    told = tune_afterwards(capsys, tmp_path, *options)
    assert told == "a measurement was killed: what it changed is taken back\n"
    assert pi.read(GOVERNOR) == "ondemand"
    assert not any((pi.root / "var/lib/esp-gw-tune").iterdir())


def test_a_boot_ends_a_measurement(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, "without with")
    monkeypatch.setattr(tuning, "boot_id", lambda: "later")
    # Not the measurement's, though it has the same value.
    assert pi.read(GOVERNOR) == "performance"
    tune(capsys, tmp_path, "--reapply")
    assert pi.read(GOVERNOR) == "performance"
    assert not any((pi.root / "var/lib/esp-gw-tune").iterdir())


def test_nothing_to_change_is_nothing_to_measure(tmp_path: Path, capsys: Capture) -> None:
    assert "nothing to compare" in tune(capsys, tmp_path, "--measure")
    empty = {"rounds": [], "medians": {}, "steps": [], "kept": ""}
    assert json.loads(tune(capsys, tmp_path, "--measure", "--json")) == empty


def test_a_folder_that_can_not_be_made_is_an_error_before_anything_is_changed(
    pi: FakeMachine, tmp_path: Path, capsys: Capture
) -> None:
    (pi.root / "var/lib").rmdir()
    text = fail(capsys, "tune", "--config", str(tmp_path / "none"), "--apply")
    assert text.endswith("made.json: No such file or directory; nothing was changed\n")
    assert pi.read(GOVERNOR) == "ondemand"


def systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program in place of systemctl, which keeps its arguments in a file."""
    program = folder / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/called\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(tuning, "SYSTEMD_RUNS", folder)
    monkeypatch.setattr(tuning, "_is_this_machine", lambda: True)
    return folder / "called"


def test_the_unit_is_enabled_and_disabled(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = systemctl(tmp_path, monkeypatch, "exit 0")
    assert pi.read(GOVERNOR) == "ondemand"
    kept = "5 settings made; esp-gw-tune.service makes them at each boot\n"
    assert tune(capsys, tmp_path, "--apply").endswith(kept)
    done = "5 settings taken back; esp-gw-tune.service is disabled\n"
    assert tune(capsys, tmp_path, "--undo").endswith(done)
    assert called.read_text() == (
        "--quiet enable esp-gw-tune.service\n--quiet disable esp-gw-tune.service\n"
    )


def test_a_unit_that_is_not_installed_is_told(
    pi: FakeMachine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl(tmp_path, monkeypatch, "echo 'Unit file does not exist.' >&2; exit 1")
    text = tune(capsys, tmp_path, "--apply")
    assert text.endswith(
        "until the next boot: Unit file does not exist. ('scripts/install' installs the unit)\n"
    )
    assert pi.read(GOVERNOR) == "performance"


def test_peers_come_from_the_running_gateway_where_no_file_names_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[Any]] = []

    class Running(tuning.Daemon):
        def call(self, method: str, **_: object) -> dict[str, Any]:
            assert method == "ListTunnels"
            plain = {"name": "t", "local": "192.0.2.1", "encapsulation": "udp", "sas": ["a", "b"]}
            return {"tunnels": [plain | {"remote": "192.0.2.7"}, plain | {"remote": "any"}]}

    def cards(peers: Any, _tun: str, _root: Path) -> list[str]:
        asked.append(list(peers))
        return ["eth7"]

    monkeypatch.setattr(outgoing, "outgoing_cards", cards)
    found = outgoing.surroundings(tmp_path / "none", Running(), tmp_path)
    assert found.cards == ["eth7"]
    assert asked[-1] == [ip_address("192.0.2.7")]
