"""`esp-gw sa export`: permitted destinations of the peer's lines, and their content."""

from __future__ import annotations

import asyncio
import os
import pty
import stat
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from esp_gw.cli.main import main
from esp_gw.config.added import Store, StoredState, parse_sa_entry
from esp_gw.config.load import load_config
from esp_gw.config.provision import make_pair
from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, ControlServer
from esp_gw.model import Direction
from esp_gw.xfrm.commands import MARGIN
from tests.support.xfrm_kernel import kernel_after

Capture = pytest.CaptureFixture[str]
KEY = "d4" * 36


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ESP_GW_SOCKET", raising=False)
    pair = make_pair(
        tmp_path / "init",
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        local_nets=[ip_network("10.1.0.0/24")],
        remote_nets=[ip_network("10.2.0.0/24")],
        local_settings={
            "state_dir": str(tmp_path),
            "control_socket": str(tmp_path / "control.sock"),
        },
    )
    return pair.local


def keys_of(config: Path) -> list[str]:
    return [sa.keymat.to_bytes().hex() for sa in load_config(config).sas]


def export(config: Path, target: object, *more: str) -> int:
    return main(["sa", "export", "--config", str(config), "--output", str(target), *more])


def test_the_file_is_private_and_holds_matching_states(
    config: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert export(config, tmp_path / "batch") == 0
    out, err = capsys.readouterr()
    assert stat.S_IMODE((tmp_path / "batch").stat().st_mode) == 0o600
    there = kernel_after((tmp_path / "batch").read_text())
    assert sorted(state.keymat.to_bytes().hex() for state in there.states) == sorted(
        keys_of(config)
    )
    assert [policy.direction for policy in there.policies] == ["in", "fwd", "out"]
    assert not any(key[:16] in out + err for key in keys_of(config))
    assert "the sequence numbers begin at 1" in err
    assert "UDP_ENCAP" in err


def test_an_existing_file_is_not_overwritten(config: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "batch").write_text("mine")
    assert export(config, tmp_path / "batch") == 1
    assert "exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "batch").read_text() == "mine"


def test_a_missing_folder_is_reported(config: Path, tmp_path: Path, capsys: Capture) -> None:
    assert export(config, tmp_path / "no" / "batch") == 1
    assert f"{tmp_path}/no/batch: No such file" in capsys.readouterr().err


def spawned(config: Path, stdout: int) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "esp_gw.cli.main"]
    done = subprocess.run(
        [*command, "sa", "export", "--config", str(config), "--output", "-"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


def test_a_pipe_gets_the_lines(config: Path) -> None:
    status, out, err = spawned(config, subprocess.PIPE)
    assert status == 0
    assert len(kernel_after(out).states) == 2
    assert not any(key[:16] in err for key in keys_of(config))


def test_a_terminal_gets_nothing(config: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        status, _, err = spawned(config, theirs)
        os.write(theirs, b"end\n")
        assert os.read(ours, 65536).strip() == b"end"
    finally:
        os.close(ours)
        os.close(theirs)
    assert status == 1
    assert "stdout is not a pipe" in err


def test_a_redirection_gets_nothing(config: Path, tmp_path: Path) -> None:
    """The file was created by the shell, readable by all."""
    with (tmp_path / "batch").open("wb") as file:
        status, _, err = spawned(config, file.fileno())
    assert (status, (tmp_path / "batch").read_bytes()) == (1, b"")
    assert "stdout is not a pipe" in err


def test_one_of_several_peers_must_be_chosen(config: Path, tmp_path: Path, capsys: Capture) -> None:
    entry = {
        "name": "other/out",
        "direction": "outbound",
        "spi": 0x9999,
        "key": KEY,
        "encapsulation": "none",
        "local": "192.0.2.1",
        "remote": "192.0.2.3",
        "local_ts": ["10.1.0.0/24"],
        "remote_ts": ["10.3.0.0/24"],
    }
    Store(tmp_path / "added.json").save(StoredState(sas=(parse_sa_entry(entry),)))
    assert export(config, tmp_path / "batch") == 1
    assert "--remote: 192.0.2.2, 192.0.2.3" in capsys.readouterr().err
    assert export(config, tmp_path / "batch", "--remote", "192.0.2.9") == 1
    assert "there is no SA with 192.0.2.9" in capsys.readouterr().err
    assert export(config, tmp_path / "batch", "--remote", "192.0.2.3") == 0
    (state,) = kernel_after((tmp_path / "batch").read_text()).states
    assert (state.spi, state.keymat.to_bytes().hex()) == (0x9999, KEY)


def test_an_unreadable_key_is_reported(config: Path, tmp_path: Path, capsys: Capture) -> None:
    key = next((config.parent / "keys").iterdir())
    key.chmod(0o644)
    assert export(config, tmp_path / "batch") == 78
    assert "open to other users" in capsys.readouterr().err
    assert not (tmp_path / "batch").exists()


async def test_the_daemon_is_asked_for_numbers_and_for_no_key(
    config: Path, tmp_path: Path, capsys: Capture
) -> None:
    asked = []

    async def list_sas(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        asked.append("ListSas")
        return {
            "sas": [
                {"name": "pi-b/out", "direction": "outbound", "seq": 501},
                {"name": "pi-b/in", "direction": "inbound", "seq": 2**33 + 7},
            ]
        }

    server = ControlServer(tmp_path / "control.sock", {f"{PREFIX}ListSas": list_sas})
    await server.start()
    assert await asyncio.to_thread(export, config, tmp_path / "batch") == 0
    await server.close()
    assert asked == ["ListSas"]
    assert "begin at 1" not in capsys.readouterr().err
    spis = {sa.direction: sa.spi for sa in load_config(config).sas}
    there = {s.spi: s for s in kernel_after((tmp_path / "batch").read_text()).states}
    in_, out = there[spis[Direction.OUTBOUND]], there[spis[Direction.INBOUND]]
    assert in_.seq == 500 + in_.window, "its left edge is after the last number sent"
    assert (out.oseq, out.esn) == (2**33 + 7 + MARGIN, True)


def test_a_gateway_without_sas_has_nothing_to_export(
    config: Path, tmp_path: Path, capsys: Capture
) -> None:
    document = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({"gateway": document["gateway"]}))
    assert export(config, tmp_path / "batch") == 1
    assert "there are no SAs" in capsys.readouterr().err


@pytest.mark.parametrize("remote", ["any", "gw.example"])
def test_a_peer_without_an_address_is_asked_for_one(
    config: Path, tmp_path: Path, capsys: Capture, remote: str
) -> None:
    document = yaml.safe_load(config.read_text())
    for tunnel in document["tunnels"].values():
        tunnel["remote"] = remote
    config.write_text(yaml.safe_dump(document))
    assert export(config, tmp_path / "batch") == 1
    assert "write its address as 'remote'" in capsys.readouterr().err
