"""`esp-gw demo --ike`: keys by two charons, rekeys under load, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.charon import PLUGIN
from esp_gw.demo.netns import NETNS_DIR
from lab.waiting import holds_within
from tests.support.charon import Installation

DEMO = (sys.executable, "-m", "esp_gw.cli.main", "demo", "--ike")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="demo") as folder:
        yield Path(folder)


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *options], capture_output=True, text=True, timeout=110, check=False
    )


def leftovers(folder: Path, pid: int | None = None) -> list[str]:
    """Return namespaces of a demo, folders of it, and charons that run."""
    charons = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/exe")
        if str(folder) in _target(path)
    ]
    names = [entry.name for entry in NETNS_DIR.iterdir()] if pid else []
    return [
        *charons,
        *(name for name in names if name.endswith(f"-{pid}")),
        *(str(path) for path in folder.iterdir()),
    ]


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--encapsulation", "none", "--suite", "chacha20poly1305"),
        ("--mode", "transport", "--encapsulation", "none"),
    ],
)
def test_it_rekeys_twice_under_load_and_loses_nothing(
    installed: Installation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    plugin = str(installed.plugins / PLUGIN)
    done = demo("--plugin", plugin, "--seconds", "3", "--json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["rekeys"], result["lost"]) == (2, 0)
    assert result["cleartext_packets_on_wire"] == 0
    assert min(result["tcp_gbit_s"], result["tcp_reverse_gbit_s"]) > 0
    # Two messages each for the beginning and for a rekey, and two more to delete what it replaced.
    assert result["ike_messages_on_wire"] >= 2 * 2 + 2 * 2
    late = result["drops"].get("replay-old", 0)
    assert result["packets_out"] == result["packets_in"] + late > 1000
    assert leftovers(tmp_path) == []


def test_the_table_has_what_both_kinds_of_keys_have(
    installed: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = demo("--plugin", str(installed.plugins / PLUGIN), "--seconds", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("keys  ", "rekeys under load  ", "TCP, 3 s  ", "verdict  "):
        assert f"\n  {row}" in done.stdout
    assert "2, packets lost by them: none" in done.stdout


def test_a_missing_plugin_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = demo("--plugin", "/nowhere/plugin.so")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "/nowhere/plugin.so" in line and "install-ike" in line
    assert leftovers(tmp_path) == []


def test_a_plugin_that_does_not_load_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    done = demo("--plugin", str(wrong))
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("esp-gw: error: ")
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path / "tmp") == []


def test_one_that_is_interrupted_cleans_up(
    installed: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [*DEMO, "--plugin", str(installed.plugins / PLUGIN), "--seconds", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("iperf3" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    assert holds_within(60, lambda: process.poll() is not None)
    process.stderr.close()
    assert process.returncode == 130
    assert leftovers(tmp_path, process.pid) == []
