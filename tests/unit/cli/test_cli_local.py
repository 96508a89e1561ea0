"""The CLI's commands that need no daemon: check, init, ledger, run and demo."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import esp_gw
import esp_gw.daemon
import esp_gw.demo
from esp_gw.cli import config as config_commands
from esp_gw.cli.ledger import ledger
from esp_gw.cli.main import main
from esp_gw.cli.output import counted, drops, endpoint, size, span
from esp_gw.config.added import Store, StoredState, parse_sa_entry
from esp_gw.config.keyfile import generate
from esp_gw.config.load import load_config
from esp_gw.crypto import measure, probe, processor
from esp_gw.crypto.measure import Sealer
from esp_gw.demo.steps import DemoOptions
from esp_gw.desired import GatewaySettings
from esp_gw.errors import ConfigError, EspGwError, KeyReuseError, Problem
from esp_gw.ledger.ledger import Ledger
from esp_gw.model import SUITES, Encapsulation, Mode
from tests.support.commands import Capture, fail, run
from tests.support.ledgers import MACHINE

INIT = shlex.split(
    "init --local 203.0.113.1 --remote 198.51.100.1"
    " --local-net 10.1.0.0/24 --remote-net 10.2.0.0/24"
)


def test_init_writes_a_pair_that_check_accepts_and_prints_the_next_commands(
    tmp_path: Path, capsys: Capture
) -> None:
    out = run(capsys, *INIT, "--out", str(tmp_path), "--name-b", "office", "--suite", "aes128gcm8")
    assert out.count("  sudo esp-gw ledger create\n") == 2
    assert out.count("  sudo systemctl enable --now esp-gw\n") == 2
    assert "  sudo cp -r office/. /etc/esp-gw\n" in out
    assert "  sudo chown -R esp-gw: /etc/esp-gw\n" in out
    folders = [tmp_path / "pi-a", tmp_path / "office"]
    for key in tmp_path.glob("*/keys/*.key"):
        assert key.read_text().splitlines()[-1] not in out
    *checked, whom = run(capsys, "config", "check", *map(str, folders)).splitlines()
    sas = 2 * min(max(len(os.sched_getaffinity(0)), 2), 4)
    assert checked == [f"{folder}: ok, 1 tunnel, {sas} SAs" for folder in folders]
    assert whom.startswith("looked as ")
    here, there = (load_config(folder).tunnels[0] for folder in folders)
    assert (here.local, here.remote, here.local_ts) == (there.remote, there.local, there.remote_ts)
    assert here.suite is SUITES["aes128gcm8"]


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_a_key_instead_of_its_file_is_refused_and_not_quoted(prefix: str, capsys: Capture) -> None:
    key = prefix + "0123456789abcdef" * 4 + "01234567"
    sa = ("--direction", "outbound", "--spi", "4097", "--local", "192.0.2.1", "--remote", "::2")
    err = fail(capsys, "sa", "add", "x", *sa, "--key-file", key, status=2)
    assert "--key-file: this is a key" in err
    assert "0123" not in err


@pytest.mark.parametrize("given", [[], ["--local-net", "10.1.0.0/24"], ["--remote-net", "::/0"]])
def test_init_of_a_tunnel_without_networks_names_the_options(
    tmp_path: Path, capsys: Capture, given: list[str]
) -> None:
    ends = ("--local", "203.0.113.1", "--remote", "198.51.100.1", "--out", str(tmp_path))
    err = fail(capsys, "init", *ends, *given, status=2)
    assert "give --local-net and --remote-net" in err
    assert list(tmp_path.iterdir()) == []
    run(capsys, "init", *ends, "--mode", "transport")


@pytest.mark.parametrize(("processors", "sas"), [(1, 2), (2, 2), (3, 3), (4, 4), (64, 4)])
def test_init_writes_a_lane_for_sparse_flows_and_bulk_ones_by_the_processors(
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    processors: int,
    sas: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    assert f"\nsas: {sas}. The default" in run(capsys, *INIT, "--out", str(tmp_path))
    for folder in (tmp_path / "pi-a", tmp_path / "pi-b"):
        assert len(load_config(folder).sas) == 2 * sas


def test_init_makes_one_sa_for_a_peer_that_allows_one(tmp_path: Path, capsys: Capture) -> None:
    assert "sas:" not in run(capsys, *INIT, "--out", str(tmp_path), "--sas", "1")
    for folder in (tmp_path / "pi-a", tmp_path / "pi-b"):
        assert [sa.lane for sa in load_config(folder).sas] == [None, None]
        assert "sas:" not in (folder / "gateway.yaml").read_text()


def test_init_never_overwrites(tmp_path: Path, capsys: Capture) -> None:
    run(capsys, *INIT, "--out", str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "exists already" in fail(capsys, *INIT, "--out", str(tmp_path))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_check_names_every_problem_with_its_line(tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("gateway:\n  port: 99999\n  interfaces: esp0\n")
    assert main(["config", "check", str(bad)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    *found, whom = err.splitlines()
    assert [line.split(": ")[0] for line in found] == [f"{bad}:2", f"{bad}:3"]
    assert whom.startswith("looked as ")
    assert main(["config", "check", "--json", str(bad), str(tmp_path / "none.yaml")]) == 1
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(entry["file"], entry["ok"]) for entry in files] == [
        (str(bad), False),
        (str(tmp_path / "none.yaml"), False),
    ]
    assert [problem["line"] for problem in files[0]["problems"]] == [2, 3]


def test_check_reports_its_findings_as_json(tmp_path: Path, capsys: Capture) -> None:
    run(capsys, *INIT, "--sas", "1", "--out", str(tmp_path))
    run(capsys, *INIT, "--sas", "4", "--out", str(tmp_path / "four"))
    assert "1 tunnel, 8 SAs\n" in run(capsys, "config", "check", str(tmp_path / "four" / "pi-b"))
    (entry,) = json.loads(run(capsys, "config", "check", "--json", str(tmp_path / "pi-a")))["files"]
    assert (entry["ok"], entry["tunnels"], entry["sas"], entry["problems"]) == (True, 1, 2, [])
    assert entry["as"].startswith("as ")


def lacking_aes(
    monkeypatch: pytest.MonkeyPatch, chacha_ns: float, af_alg_ns: float | None = None
) -> None:
    """Fake a processor without AES instructions, 1000 ns per AES-GCM packet; AF_ALG is optional."""
    monkeypatch.setattr(processor, "_CPUINFO", Path("/nowhere"))

    def seal_time(provider: str, suite: str, size: int, packets: int) -> float:
        if provider == "af-alg":
            assert af_alg_ns is not None
            assert suite != "chacha20poly1305"
            return af_alg_ns
        return chacha_ns if suite == "chacha20poly1305" else 1000

    def find_faults() -> dict[str, str]:
        return {
            suite: "it gives wrong answers"
            for suite in SUITES
            if af_alg_ns is None or suite == "chacha20poly1305"
        }

    monkeypatch.setattr(Sealer, "measure", lambda self: seal_time)
    monkeypatch.setattr(probe, "find_faults", find_faults)


def test_init_chooses_the_suite_for_boards_that_are_known(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suite(name: str, *options: str) -> str:
        nonlocal out
        out = run(capsys, *INIT, "--out", str(tmp_path / name), *options)
        suites = {load_config(tmp_path / name / end).tunnels[0].suite for end in ("pi-a", "pi-b")}
        (found,) = suites
        assert f"\nsuite: {found}. " in out
        return found.name

    out = ""
    lacking_aes(monkeypatch, chacha_ns=250)
    assert suite("not-known") == "aes256gcm16"
    assert "add --same-boards" in out
    assert suite("known", "--same-boards") == "chacha20poly1305"
    assert "It is 4.0 times as fast as aes256gcm16 on this machine." in out
    assert suite("said", "--same-boards", "--suite", "aes128gcm16") == "aes128gcm16"
    lacking_aes(monkeypatch, chacha_ns=900)
    assert suite("alike", "--same-boards") == "aes256gcm16"
    monkeypatch.setattr("esp_gw.crypto.processor.aes_path", lambda: "AES-NI")
    assert suite("with-aes") == "aes256gcm16"
    assert "suite: aes256gcm16. The default.\n" in out


def test_check_says_what_a_peer_that_may_be_anywhere_needs(tmp_path: Path, capsys: Capture) -> None:
    run(capsys, *INIT, "--out", str(tmp_path))
    file = tmp_path / "pi-a" / "gateway.yaml"
    text = file.read_text()
    remote = next(line for line in text.splitlines() if line.strip().startswith("remote:"))
    file.write_text(text.replace(remote, "    remote: any"))
    (entry,) = json.loads(run(capsys, "config", "check", "--json", str(file)))["files"]
    assert entry["ok"]
    (warning,) = [each for each in entry["warnings"] if "any" in each]
    assert warning.startswith("remote: any (pi-b): nothing is sent before the other end has sent")
    assert "any at both ends" in warning


def test_check_hints_at_a_faster_suite_and_finds_nothing_wrong(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, *INIT, "--sas", "1", "--out", str(tmp_path))
    file = str(tmp_path / "pi-a")
    lacking_aes(monkeypatch, chacha_ns=250)
    hint, ok, whom = run(capsys, "config", "check", file).splitlines()
    assert hint.startswith(f"{file}: warning: tunnel pi-b: the suite aes256gcm16 takes 4.0 times")
    assert ok == f"{file}: ok, 1 tunnel, 2 SAs"
    (entry,) = json.loads(run(capsys, "config", "check", "--json", file))["files"]
    assert (entry["ok"], len(entry["warnings"])) == (True, 1)
    lacking_aes(monkeypatch, chacha_ns=900)
    assert run(capsys, "config", "check", file) == f"{ok}\n{whom}\n"


def test_bench_crypto_prints_a_table_missing_figures_and_a_recommendation(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking_aes(monkeypatch, chacha_ns=250)
    out = run(capsys, "bench", "crypto")
    rows = [line.split() for line in out.splitlines()]
    # 64 bytes in a microsecond are 512 Mbit/s, 1400 in a quarter of one 44,800.
    assert ["aes256gcm16", "64", "1000", "512"] in [row[:4] for row in rows]
    assert ["chacha20poly1305", "1400", "250", "44800"] in [row[:4] for row in rows]
    assert "not measured: af-alg (it gives wrong answers)\n" in out
    assert "recommended: chacha20poly1305. It is 4.0 times as fast as aes256gcm16" in out
    found = json.loads(run(capsys, "bench", "crypto", "--json"))
    assert found["recommended"] == "chacha20poly1305"
    assert {"provider": "openssl", "suite": "aes128gcm16", "size": 576, "ns": 1000.0} in found[
        "figures"
    ]
    assert {entry["provider"] for entry in found["missing"]} == {"af-alg"}
    assert "--fast" in fail(capsys, "bench", "crypto", "--fast", status=2)


def test_bench_crypto_uses_af_alg_figures_where_they_are_faster(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking_aes(monkeypatch, chacha_ns=250, af_alg_ns=200)
    out = run(capsys, "bench", "crypto")
    assert "faster by AF_ALG: aes256gcm16, aes128gcm16 (" in out
    assert "not measured: af-alg chacha20poly1305 (it gives wrong answers)\n" in out
    assert "recommended: aes256gcm16. It is about as fast as chacha20poly1305" in out
    lacking_aes(monkeypatch, chacha_ns=250, af_alg_ns=990)
    out = run(capsys, "bench", "crypto")
    assert "faster by AF_ALG" not in out
    assert "recommended: chacha20poly1305. It is 4.0 times" in out


def test_bench_crypto_measures_this_machine(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "THOROUGH", measure.BRIEF)
    found = json.loads(run(capsys, "bench", "crypto", "--json"))
    ours = [entry["ns"] for entry in found["figures"] if entry["provider"] == "openssl"]
    assert len(ours) == 9
    assert all(ns > 0 for ns in ours)
    assert found["recommended"] in SUITES


def test_check_without_a_file_looks_at_the_usual_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr(config_commands, "DEFAULT_CONFIG", tmp_path / "none")
    assert f"{tmp_path / 'none'}: does not exist ('esp-gw init' writes one)" in fail(
        capsys, "config", "check"
    )


def test_ledger_create_makes_one_once_and_show_lists_its_keys(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.ledger.identity.machine_identity", lambda _: MACHINE)
    state = tmp_path / "state"
    assert "there is no ledger" in fail(capsys, "ledger", "show", "--state-dir", str(state))
    assert run(capsys, "ledger", "create", "--state-dir", str(state)).startswith("made ")
    assert "exists already" in fail(capsys, "ledger", "create", "--state-dir", str(state))
    keymat = generate(SUITES["aes256gcm16"])
    ledger = Ledger.open(state / "ledger.db", MACHINE)
    ledger.lease(keymat, 100, 2**64 - 1)
    ledger.close()
    (key,) = json.loads(run(capsys, "ledger", "show", "--json", "--state-dir", str(state)))["keys"]
    assert (key["role"], key["seq"]) == ("outbound", 101)
    assert f"{key['fingerprint']}  outbound  101" in run(
        capsys, "ledger", "show", "--state-dir", str(state)
    )


def test_the_ledger_is_that_of_the_configuration(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.ledger.identity.machine_identity", lambda _: MACHINE)
    config, state = tmp_path / "gw.yaml", tmp_path / "state"
    # Neither keys nor the rest need be right for it.
    config.write_text(f"gateway: {{state_dir: {state}, port: x}}\ntunnels: {{a: {{}}}}\n")
    made = f"made {state / 'ledger.db'}\n"
    assert run(capsys, "ledger", "create", "--config", str(config)) == made
    assert run(capsys, "ledger", "show", "--config", str(config)) == "no key was used yet\n"
    (state / "ledger.db").write_bytes(b"damaged")
    config.write_text(f"gateway: {{state_dir: {state}}}\n")
    assert run(capsys, "ledger", "create", "--replace", "--config", str(config)).startswith(
        f"made {state / 'ledger.db'}; "
    )
    other = tmp_path / "other"
    words = ("--state-dir", str(other), "--config", str(config))
    assert run(capsys, "ledger", "create", *words) == f"made {other / 'ledger.db'}\n"


def test_no_ledger_is_made_while_its_place_is_unknown(tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "gw.yaml"
    assert "does not exist ('esp-gw init' writes one)" in fail(
        capsys, "ledger", "create", "--config", str(config)
    )
    config.write_text("gateway: {state_dir: here}\n")
    for words in (("create",), ("create", "--replace"), ("show",)):
        err = fail(capsys, "ledger", *words, "--config", str(config), status=78)
        assert err.startswith(f"{config}:1: gateway.state_dir: ")
    assert [path.name for path in tmp_path.iterdir()] == ["gw.yaml"]


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_without_any_configuration_the_ledger_is_in_the_usual_place(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "empty").mkdir()
    usual = GatewaySettings(state_dir=str(tmp_path / "usual"))
    monkeypatch.setattr("esp_gw.cli.ledger.GatewaySettings", lambda: usual)
    monkeypatch.setattr("esp_gw.ledger.identity.machine_identity", lambda _: MACHINE)
    (option,) = [p for p in ledger.commands["create"].params if p.name == "config"]
    monkeypatch.setattr(option, "default", tmp_path / folder)
    made = f"made {usual.state_dir}/ledger.db\n"
    assert run(capsys, "ledger", "create") == made


@pytest.fixture
def used(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a gateway whose keys were used: configuration, state directory, ledger, keys."""
    monkeypatch.setattr("esp_gw.ledger.identity.machine_identity", lambda _: MACHINE)
    run(capsys, *INIT, "--sas", "1", "--out", str(tmp_path))
    config, state = tmp_path / "pi-a", tmp_path / "state"
    run(capsys, "ledger", "create", "--state-dir", str(state))
    added = parse_sa_entry(
        {"name": "x", "direction": "outbound", "spi": 4097, "local": "192.0.2.1",
         "remote": "192.0.2.2", "local_ts": ["10.1.0.0/24"], "remote_ts": ["10.3.0.0/24"],
         "suite": "aes128gcm16", "key": "5a" * 20}
    )  # fmt: skip
    Store(state / "added.json").save(StoredState(sas=(added,)))
    return SimpleNamespace(
        config=config,
        state=state,
        ledger=state / "ledger.db",
        keymats=[*(sa.keymat for sa in load_config(config).sas), added.to_sa().keymat],
        replace=("ledger", "create", "--replace", "--state-dir", str(state), "--config"),
    )


def test_ledger_replace_refuses_every_key_of_the_configuration_and_the_cli(
    used: SimpleNamespace, capsys: Capture
) -> None:
    used.ledger.write_bytes(bytes(12288))
    said = run(capsys, *used.replace, str(used.config))
    assert (
        "3 keys" in said and "keygen" in said and f"move {used.state / 'added.json'} away" in said
    )
    with closing(Ledger.open(used.ledger, MACHINE)) as ledger:
        for keymat in used.keymats:
            with pytest.raises(KeyReuseError, match="make new keys with 'esp-gw keygen'"):
                ledger.lease(keymat, 1, 2**64 - 1)
    assert run(capsys, "ledger", "show", "--state-dir", str(used.state)).count("retired") == 3


@pytest.mark.parametrize("broken", ["a key file", "the configuration", "added.json"])
def test_ledger_replace_does_nothing_while_the_keys_to_refuse_can_not_be_read(
    used: SimpleNamespace, capsys: Capture, broken: str
) -> None:
    used.ledger.write_bytes(b"damaged")
    match broken:
        case "a key file":
            where = used.config
            next(iter((used.config / "keys").iterdir())).unlink()
        case "the configuration":
            where = used.config
            (used.config / "gateway.yaml").unlink()
        case _:
            where = used.state / "added.json"
            where.write_text("[")
    (line,) = fail(capsys, *used.replace, str(used.config)).splitlines()
    assert line.startswith(f"esp-gw: error: {where}: the ledger is not replaced")
    assert used.ledger.read_bytes() == b"damaged"


def fake(monkeypatch: pytest.MonkeyPatch, package: object, name: str, module: object) -> None:
    monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", module)  # type: ignore[attr-defined]
    monkeypatch.setattr(package, name, module, raising=False)


def test_run_starts_the_daemon_and_returns_its_status(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, str]] = []

    def daemon_run(config: Path, log_level: str) -> int:
        calls.append((config, log_level))
        return 3

    fake(monkeypatch, esp_gw.daemon, "main", SimpleNamespace(run=daemon_run))
    run(capsys, "run", status=3)
    run(capsys, "run", "--config", "/x.yaml", "--log-level", "debug", status=3)
    assert calls == [(Path("/etc/esp-gw"), "info"), (Path("/x.yaml"), "debug")]


@pytest.mark.parametrize(
    ("raised", "status", "lines"),
    [
        (EspGwError("no TUN", hint="modprobe tun"), 1, ["esp-gw: error: no TUN; modprobe tun"]),
        (
            ConfigError([Problem("a.yaml", 3, "x", "bad"), Problem("b.yaml", 0, "", "wrong")]),
            78,
            ["a.yaml:3: x: bad", "b.yaml: wrong", "esp-gw: error: 2 problems in the configuration"],
        ),
    ],
)
def test_errors_that_stop_the_daemon_are_printed_line_by_line(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    status: int,
    lines: list[str],
) -> None:
    def daemon_run(_config: Path, _log_level: str) -> int:
        raise raised

    fake(monkeypatch, esp_gw.daemon, "main", SimpleNamespace(run=daemon_run))
    assert fail(capsys, "run", status=status).splitlines() == lines


def test_demo_passes_its_options_as_values(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, DemoOptions]] = []

    def take(kind: str) -> Callable[[DemoOptions], int]:
        def demo_run(options: DemoOptions) -> int:
            seen.append((kind, options))
            return 0

        return demo_run

    module = SimpleNamespace(run=take("manual"), run_ike=take("ike"))
    fake(monkeypatch, esp_gw.demo, "run", module)
    run(capsys, "demo")
    run(capsys, *shlex.split("demo --engine python --mode transport --encapsulation none"),
        *shlex.split("--suite aes128gcm16 --seconds 2 --json"))  # fmt: skip
    run(capsys, "demo", "--ike")
    run(capsys, "demo", "--ike", "--plugin", "/somewhere")
    default = DemoOptions(
        "auto", Mode.TUNNEL, Encapsulation.UDP, SUITES["aes256gcm16"], 5, json_output=False
    )
    short = DemoOptions(
        "python", Mode.TRANSPORT, Encapsulation.NONE, SUITES["aes128gcm16"], 2, json_output=True
    )
    assert seen == [
        ("manual", default),
        ("manual", short),
        ("ike", default),
        ("ike", replace(default, plugin=Path("/somewhere"))),
    ]
    assert "--plugin needs --ike" in fail(capsys, "demo", "--plugin", "/somewhere", status=2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (2**20, "1.00 MiB"),
     (5 * 2**30, "5.00 GiB"), (2**40, "1.00 TiB"), (2**60, "1024.00 PiB")],
)  # fmt: skip
def test_bytes_are_readable(value: int, text: str) -> None:
    assert size(value) == text


def test_small_texts() -> None:
    assert [span(s) for s in (0, 59.9, 60, 3600, 90061)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "1 h 0 min",
        "1 d 1 h",
    ]
    assert endpoint("fd00::1", 4500) == "[fd00::1]:4500"
    assert endpoint("fd00::1", None) == "fd00::1"
    assert [drops(d) for d in ({}, {"a": 0}, {"a": 1, "b": 2}, 0, 5, None)] == [
        "", "", "a 1, b 2", "", "5", ""]  # fmt: skip
    assert [counted(n, "SA") for n in (0, 1, 2)] == ["0 SAs", "1 SA", "2 SAs"]
