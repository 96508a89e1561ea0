"""`esp-gw config`, and the former spelling of its check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from esp_gw.cli.main import main
from esp_gw.config.load import load_protection
from tests.support.canned import Gateway
from tests.support.commands import Capture, fail, run

CONFIGS = Path(__file__).parents[3] / "configs"
CHANGE = "remote_ts of office: + 10.3.0.0/24\n"


@pytest.mark.parametrize("command", [("config", "diff"), ("reload", "--dry-run")])
def test_diff_and_a_dry_run_say_what_would_change_and_change_nothing(
    gateway: Gateway, capsys: Capture, command: tuple[str, ...]
) -> None:
    assert run(capsys, *command) == CHANGE
    assert json.loads(run(capsys, *command, "--json")) == {"changes": [CHANGE.strip()]}
    gateway.replies["CheckReload"] = {"changes": []}
    assert run(capsys, *command) == "nothing would change\n"
    assert {method for method, _ in gateway.asked} == {"CheckReload"}


def test_diff_of_a_configuration_asks_the_gateway_that_reads_it(
    gateway: Gateway, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("gateway: {}\n")
    assert run(capsys, "config", "diff", "--config", str(path)) == CHANGE
    assert gateway.asked == [("CheckReload", {"config": str(path)})]


def test_the_former_spelling_goes_on_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    none = str(tmp_path / "none.yaml")
    now = fail(capsys, "config", "check", none)
    assert fail(capsys, "check", none) == (
        f"note: 'esp-gw check' is 'esp-gw config check' now\n{now}"
    )
    assert main(["check", "--json", none]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["files"][0]["ok"] is False
    assert err.count("\n") == 1
    assert "  check" not in run(capsys, "--help")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_show_has_what_the_file_has_and_the_defaults_of_the_rest(
    path: Path, capsys: Capture
) -> None:
    found = json.loads(run(capsys, "config", "show", "--json", "--config", str(path)))
    wanted = load_protection(path)
    assert [tunnel["name"] for tunnel in found["tunnels"]] == [t.name for t in wanted.tunnels]
    assert found["settings"]["gateway.port"] == {"shown": "4500", "is_default": True}
    assert found["settings"]["gateway.fwmark"] == {"shown": "0xe5b", "is_default": True}
    text = run(capsys, "config", "show", "--config", str(path))
    for tunnel in wanted.tunnels:
        assert f"tunnel: {tunnel.name}\n" in text
        assert all(str(prefix) in text for prefix in (*tunnel.local_ts, *tunnel.remote_ts))


def test_show_reads_no_key_and_shows_none(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "gateway.yaml"
    shutil.copy(CONFIGS / "pi-a.yaml", path)
    text = path.read_text()
    for name in ("out", "in"):
        text = text.replace(f"file: keys/pi-b.{name}.key", f"inline: {'ab' * 36}")
    path.write_text(text)
    assert "ab" * 36 in path.read_text()
    assert "abab" not in run(capsys, "config", "show", "--config", str(path))
    assert "does not exist ('esp-gw init' writes one)" in fail(
        capsys, "config", "show", "--config", str(tmp_path / "none"), status=1
    )


def test_reference_has_every_field_with_its_default(capsys: Capture) -> None:
    fields = json.loads(run(capsys, "config", "reference", "--json"))["fields"]
    found = {entry["field"]: (entry["default"], entry["changes_at"]) for entry in fields}
    assert found["gateway.port"] == ("4500", "restart")
    assert found["gateway.mtu"] == ("none", "reload")
    assert found["crypto.provider"] == ("auto", "restart")
    assert found["gateway.offload.udp_gro"] == ("true", "restart")
    assert found["tunnels.NAME.suite"] == ("aes256gcm16", "reload")
    assert found["policies.action"] == ("required", "reload")
    table = run(capsys, "config", "reference").splitlines()
    assert len(table) == 1 + len(fields)


def test_the_example_is_one_that_check_understands(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(run(capsys, "config", "example"))
    assert [tunnel.name for tunnel in load_protection(path).tunnels] == ["pi-b"]
    problems = fail(capsys, "config", "check", str(path)).splitlines()
    assert len([line for line in problems if "the key file does not exist" in line]) == 2
    assert len(problems) == 3
