"""The states of tunnels on the command line: `status` for scripts, `log` for people."""

from __future__ import annotations

import json

import pytest

from esp_gw.cli.main import main
from tests.support.canned import REPLIES, Gateway
from tests.support.commands import Capture, run

WELL = {"up": 1, "quiet": 1, "down": 0, "failing": 0}


@pytest.mark.parametrize(
    ("states", "warnings", "exit_status"),
    [
        (WELL, [], 0),
        (WELL, ["something"], 1),
        (WELL | {"down": 1}, [], 1),
        (WELL | {"failing": 1}, [], 1),
    ],
)
def test_status_has_an_exit_status_for_scripts(
    gateway: Gateway,
    capsys: Capture,
    states: dict[str, int],
    warnings: list[str],
    exit_status: int,
) -> None:
    gateway.replies["GetStatus"] = REPLIES["GetStatus"] | {"states": states, "warnings": warnings}
    run(capsys, "status", status=exit_status)
    run(capsys, "status", "--json", status=exit_status)


def test_log_is_a_line_for_each_change(gateway: Gateway, capsys: Capture) -> None:
    first, second = run(capsys, "log").splitlines()
    assert first.endswith(" office quiet -> failing (auth-failed 3): another key")
    assert second.endswith(" office failing -> up")
    events = [json.loads(line) for line in run(capsys, "log", "--json").splitlines()]
    assert events == REPLIES["ListEvents"]["events"]


def test_log_asks_only_for_what_is_new(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(_seconds: float) -> None:
        if len(gateway.asked) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("esp_gw.cli.log.time.sleep", pause)
    assert main(["log", "--follow"]) == 130
    assert [parameters for _, parameters in gateway.asked] == [{"after": 0}, {"after": 8}]


def test_log_begins_anew_with_a_restarted_gateway(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restart(_seconds: float) -> None:
        if len(gateway.asked) > 1:
            raise KeyboardInterrupt
        again = {"number": 1, "time": 90.0, "tunnel": "office", "before": "up", "state": "up"}
        gateway.replies["ListEvents"] = {
            "events": [again | {"cause": "silence", "drops": ""}],
            "last": 1,
        }

    monkeypatch.setattr("esp_gw.cli.log.time.sleep", restart)
    assert main(["log", "--follow"]) == 130
    assert [parameters["after"] for _, parameters in gateway.asked] == [0, 8, 0]
    assert capsys.readouterr().out.splitlines()[-1].endswith(" office still up: silence")
