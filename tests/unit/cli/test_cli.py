"""The CLI against a real control socket: requests, output and failures."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esp_gw.cli import sa as sa_commands
from esp_gw.cli.main import main
from esp_gw.config.keyfile import generate, write_key_file
from esp_gw.errors import ControlError, EngineError
from esp_gw.model import SUITES
from tests.support.canned import REPLIES, SA_IN, SA_OUT, Gateway
from tests.support.commands import Capture, fail, run


def table(text: str) -> list[str]:
    """Return the lines with single spaces between the cells."""
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "office.key"
    write_key_file(path, [generate(SUITES["aes256gcm16"])])
    return path


def key_in(path: Path) -> str:
    return path.read_text().splitlines()[-1]


READING = [
    ("GetStatus", ("status",)),
    ("ListSas", ("sa", "list")),
    ("GetSa", ("sa", "show", "office/out")),
    ("ListPolicies", ("policy", "list")),
    ("ListTunnels", ("tunnel", "list")),
    ("GetStats", ("stats",)),
    ("ExplainDrops", ("explain", "--drops")),
    ("Reload", ("reload",)),
]


@pytest.mark.parametrize(("method", "command"), READING)
def test_json_output_is_the_unchanged_reply_of_the_control_socket(
    gateway: Gateway, capsys: Capture, method: str, command: tuple[str, ...]
) -> None:
    status = 1 if method == "GetStatus" else 0
    assert json.loads(run(capsys, *command, "--json", status=status)) == REPLIES[method]
    assert [name for name, _ in gateway.asked] == [method]


def test_sa_list_is_a_row_for_each_sa(gateway: Gateway, capsys: Capture) -> None:
    assert table(run(capsys, "sa", "list")) == [
        "NAME STATE DIR SPI SUITE LOCAL REMOTE LAST SEQ PACKETS BYTES DROPS",
        "office/out failing out 0x00001001 aes256gcm16 192.0.2.1 198.51.100.7:4500 3 s ago 42 41 "
        "5.25 MiB too-big 3",
        "office/in up in 0xc0ffee01 aes256gcm16 2001:db8::1 2001:db8::2 1 min 1 s ago 42 41 999 B",
    ]


def test_drops_have_a_column_only_if_there_are_any(gateway: Gateway, capsys: Capture) -> None:
    gateway.replies["ListSas"] = {"sas": [SA_IN]}
    assert "DROPS" not in run(capsys, "sa", "list")


@pytest.mark.parametrize(
    ("method", "key", "command", "says"),
    [
        ("ListSas", "sas", ("sa", "list"), "no SAs\n"),
        ("ListPolicies", "policies", ("policy", "list"), "no policies\n"),
        ("ListTunnels", "tunnels", ("tunnel", "list"), "no tunnels\n"),
        ("Reload", "changes", ("reload",), "nothing has changed\n"),
    ],
)
def test_an_empty_list_is_one_line(
    gateway: Gateway, capsys: Capture, method: str, key: str, command: tuple[str, ...], says: str
) -> None:
    gateway.replies[method] = {key: []}
    assert run(capsys, *command) == says


def test_reload_prints_the_changes_and_warns(gateway: Gateway, capsys: Capture) -> None:
    gateway.replies["Reload"] = {"changes": ["added SA x"], "warnings": ["a NAT is between"]}
    assert main(["reload"]) == 0
    assert capsys.readouterr() == ("added SA x\n", "warning: a NAT is between\n")


def test_sa_show_prints_the_fields_of_its_direction(gateway: Gateway, capsys: Capture) -> None:
    outbound = run(capsys, "sa", "show", "office/out")
    assert outbound.startswith("sa: office/out\n  direction: outbound\n  spi: 0x00001001\n")
    assert "  remote ts: 10.2.0.0/24, 10.3.0.0/24\n" in outbound
    assert "  seq: 42, lease to 65536\n" in outbound
    assert "  keepalive: every 20 s\n" in outbound
    assert "  liveness: off\n" in outbound
    assert "  drops: too-big 3\n" in outbound
    assert "  state: failing\n  last packet: 3 s ago\n  likely cause: another key\n" in outbound
    assert "replay window" not in outbound
    gateway.replies["GetSa"] = {"sa": SA_IN}
    inbound = run(capsys, "sa", "show", "office/in")
    assert "  replay window: 1024\n" in inbound
    assert "  seq: 42\n" in inbound
    for absent in ("keepalive", "liveness", "drops", "pair", "tunnel:", "key", "cause"):
        assert absent not in inbound


def test_keys_are_requested_only_with_reveal_keys(gateway: Gateway, capsys: Capture) -> None:
    run(capsys, "sa", "show", "office/out")
    gateway.replies["GetSa"] = {"sa": SA_OUT | {"key": "c0ffee"}}
    assert "  key: c0ffee\n" in run(capsys, "sa", "show", "office/out", "--reveal-keys")
    assert [parameters["reveal_keys"] for _, parameters in gateway.asked] == [False, True]


def test_policy_list_keeps_the_order_and_has_a_row_for_each_selector(
    gateway: Gateway, capsys: Capture
) -> None:
    assert table(run(capsys, "policy", "list"))[1:] == [
        "office protect 10.1.0.0/24 10.2.0.0/24 any office/out and 1 more config",
        "10.1.0.0/24 10.3.0.0/24 any",
        "no-smtp discard 0.0.0.0/0 10.9.0.0/16 port 25 tcp cli",
    ]


def test_tunnel_list_status_and_stats_are_human_readable(gateway: Gateway, capsys: Capture) -> None:
    tunnels = table(run(capsys, "tunnel", "list"))[1]
    assert tunnels.startswith("office up 2 s ago never tunnel/udp")
    assert "198.51.100.7:4501 10.1.0.0/24 - 10.2.0.0/24" in tunnels
    status = run(capsys, "status", status=1)
    assert "  tunnels: 1\n  states: 2 up, 1 failing\n" in status
    assert "running: for 2 h 3 min, pid 7\n" in status
    assert "engine: python, 2 workers, pinned\n" in status
    assert (
        "latency: low, at the cost of power: processors stay out of idle states while there is "
        "traffic and 40 ms after it (they do now)\n"
    ) in status
    assert (
        "cryptography: AWS-LC 5.12.0 (aes256gcm16), OpenSSL 3.6.0 (aes256gcm8), "
        "AES by AES-NI, AVX2\n"
    ) in status
    assert "  offload: udp_gso, merge\n" in status
    assert (
        "not offloaded: tso uso (switched off), udp_gso (refused for 192.0.2.2 (EIO))\n" in status
    )
    assert (
        "AF_ALG: used for aes256gcm16 (it takes half as long), "
        "not used for aes256gcm8 aes128gcm8 (it is slower)\n"
    ) in status
    assert "  lanes: 4 inbound SPIs steered, nice -11 for lane 0\n" in status
    assert "  warning: rp_filter drops\\x1b[2J\n" in status
    stats = run(capsys, "stats")
    assert "out: 10 packets, 1.50 KiB\n" in stats
    assert "no-sa: 6\n" in stats
    assert "dummy" not in stats
    assert "flows: by lane\n  office: 0: 3, 1: 1\n" in stats
    assert run(capsys, "reload") == "added SA office/out\nremoved policy old\n"


def test_reload_of_a_configuration_asks_at_its_socket(
    gateway: Gateway, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESP_GW_SOCKET")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "gw.yaml"
    config.write_text(f"gateway: {{control_socket: {gateway.path}}}\ntunnels: 5\n")
    changes = "added SA office/out\nremoved policy old\n"
    assert run(capsys, "reload", "--config", "gw.yaml") == changes
    assert gateway.asked == [("Reload", {"config": str(config)})]
    # The command line names another socket.
    err = fail(
        capsys, "--socket", str(tmp_path / "none"), "reload", "--config", "gw.yaml", status=3
    )
    assert f"no control socket at {tmp_path / 'none'}" in err


def test_reload_of_a_broken_file_asks_at_the_socket_that_it_names(
    gateway: Gateway, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESP_GW_SOCKET")
    config = tmp_path / "gw.yaml"
    config.write_text(f"gateway: {{control_socket: {gateway.path}, port: [}}\n")
    gateway.replies["Reload"] = ControlError(
        "Refused", f"{config}:1: not valid YAML", hint="nothing has changed"
    )
    assert fail(capsys, "reload", "--config", str(config)) == (
        f"esp-gw: error: {config}:1: not valid YAML; nothing has changed\n"
    )


def test_reload_of_a_file_too_broken_to_name_its_socket_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gw.yaml"
    config.write_text("{")
    monkeypatch.setenv("ESP_GW_SOCKET", str(tmp_path / "none"))
    err = fail(capsys, "reload", "--config", str(config), status=78)
    assert err.startswith(f"{config}:1: not valid YAML")
    config.write_text("tunnels: {}\n")
    assert "esp-gw is not running" in fail(capsys, "reload", "--config", str(config), status=3)


def test_rows_are_never_cut(gateway: Gateway, capsys: Capture) -> None:
    long = "2001:db8:1111:2222:3333:4444:5555:6666"
    names = [f"{'n' * 60}{i}" for i in range(3)]
    gateway.replies["ListSas"] = {
        "sas": [SA_IN | {"name": name, "local": long, "remote": long} for name in names]
    }
    lines = run(capsys, "sa", "list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == names
    assert all(line.count(long) == 2 for line in lines[1:])


def test_names_are_printed_without_markup_or_terminal_codes(
    gateway: Gateway, capsys: Capture
) -> None:
    gateway.replies["ListSas"] = {"sas": [SA_IN | {"name": "[red]a:smile:\x1b[31m\n\ud800"}]}
    assert "[red]a:smile:\\x1b[31m\\n\\ud800" in run(capsys, "sa", "list")


ADD = ("sa", "add", "b/out", "--direction", "outbound", "--spi", "0x1001",
       "--local", "192.0.2.1", "--remote", "198.51.100.7")  # fmt: skip


def test_sa_add_sends_only_the_given_options(
    gateway: Gateway, capsys: Capture, key_file: Path
) -> None:
    assert run(capsys, *ADD, "--key-file", str(key_file)).startswith("sa: office/out\n")
    assert gateway.asked == [
        ("AddSa", {"name": "b/out", "direction": "outbound", "spi": 0x1001, "local": "192.0.2.1",
                   "remote": "198.51.100.7", "key": key_in(key_file)}),
    ]  # fmt: skip


def test_sa_add_sends_all_options_under_their_names(
    gateway: Gateway, capsys: Capture, tmp_path: Path
) -> None:
    key = tmp_path / "k"
    write_key_file(key, [generate(SUITES["aes128gcm8"])])
    options = shlex.split(
        "--remote-port 4501 --local-original 192.0.2.9 --remote-original 10.0.0.2 "
        "--mode tunnel --encapsulation udp --suite aes128gcm8 --protocol tcp "
        "--local-ts 10.1.0.0/24 --local-ts 10.4.0.1 --remote-ts fd00::/64 --local-ts-port 80 "
        "--remote-ts-port 1000-2000 --no-esn --replay-window 128 --keepalive 0 --liveness 5 "
        "--pair b/in"
    )
    run(capsys, *ADD, "--key-file", str(key), *options, "--json")
    (_, parameters), = gateway.asked  # fmt: skip
    assert parameters == {
        "name": "b/out", "direction": "outbound", "spi": 0x1001, "local": "192.0.2.1",
        "remote": "198.51.100.7", "key": key_in(key), "remote_port": 4501,
        "local_original": "192.0.2.9", "remote_original": "10.0.0.2", "mode": "tunnel",
        "encapsulation": "udp", "suite": "aes128gcm8", "protocol": 6,
        "local_ts": ["10.1.0.0/24", "10.4.0.1/32"], "remote_ts": ["fd00::/64"],
        "local_ts_port": "80", "remote_ts_port": "1000-2000", "esn": False, "replay_window": 128,
        "keepalive": 0, "liveness": 5, "pair": "b/in",
    }  # fmt: skip


def test_the_daemon_understands_what_sa_add_and_policy_add_send(
    gateway: Gateway, capsys: Capture, key_file: Path
) -> None:
    from esp_gw.config.added import parse_policy_entry, parse_sa_entry

    nets = ("--local-ts", "10.1.0.0/24", "--remote-ts", "10.2.0.0/24", "--protocol", "tcp")
    ports = ("--local-ts-port", "80", "--remote-ts-port", "1-2", "--esn", "--keepalive", "9")
    run(capsys, *ADD, "--key-file", str(key_file), *nets, *ports, "--pair", "b/in")
    run(capsys, "policy", "add", "p", "--action", "protect", *nets, "--local-port", "80",
        "--remote-port", "1-2", "--sa", "b/out", "--before", "office")  # fmt: skip
    (_, sa), (_, policy) = gateway.asked
    entry = parse_sa_entry(sa)
    assert (entry.spi, entry.pair, entry.keepalive) == (0x1001, "b/in", 9)
    assert str(entry.remote_ts_port) == "1-2"
    assert parse_policy_entry(policy).before == "office"


def test_a_key_comes_from_stdin_and_is_in_no_output(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch, key_file: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(key_in(key_file) + "\n"))
    out = run(capsys, *ADD, "--key-file", "-")
    assert key_in(key_file) not in out
    assert gateway.asked[0][1]["key"] == key_in(key_file)


def test_a_key_of_the_wrong_size_is_neither_sent_nor_quoted(
    gateway: Gateway, capsys: Capture, key_file: Path
) -> None:
    err = fail(capsys, *ADD, "--key-file", str(key_file), "--suite", "aes128gcm16")
    assert err.startswith(f"esp-gw: error: {key_file}, line 1: the key has 72 hex digits")
    assert key_in(key_file)[:8] not in err
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--spi", "255", "expected a number from 256 to 4294967295, not '255'"),
        ("--spi", "0x100000000", "from 256 to 4294967295"),
        ("--spi", "abc", "expected a number from 256 to 4294967295, not 'abc'"),
        (
            "--local",
            "10.0.0.0/8",
            "expected an address without prefix length",
        ),
        ("--remote", "192.0.2.2.2", "expected an IPv4 or IPv6 address"),
        ("--local", "pi.example.org", "an IPv4 or IPv6 address, not the name 'pi.example.org'"),
        ("--local-original", "pi.lan", "'getent ahosts pi.lan' shows its addresses"),
        ("--local", "any", "expected an IPv4 or IPv6 address, not 'any'"),
        ("--local-ts", "pi.lan", "expected a prefix such as"),
        ("--remote-ts", "pi.lan", "not the name 'pi.lan'"),
        ("--local-ts", "10.0.0.1/8", "host bits are set in 10.0.0.1/8; the prefix is 10.0.0.0/8"),
        ("--remote-ts", "10.0.0.0/33", "expected a prefix such as"),
        ("--remote-ts", "", "expected a prefix"),
        ("--suite", "des", "aes256gcm12"),
        ("--suite", "des", "chacha20poly1305"),
        ("--mode", "beet", "transport"),
        ("--direction", "up", "inbound"),
        ("--remote-port", "0", "expected a number from 1 to 65535"),
        ("--replay-window", "32", "expected a number from 64 to 8192"),
        ("--keepalive", "-1", "expected a number from 0 to 3600"),
    ],
)
def test_wrong_input_is_a_usage_error_that_names_the_option(
    gateway: Gateway, capsys: Capture, key_file: Path, option: str, value: str, says: str
) -> None:
    err = fail(capsys, *ADD, "--key-file", str(key_file), option, value, status=2)
    assert option in err
    assert says in err
    assert gateway.asked == []


def test_policy_add_and_the_deletions_send_the_given_options(
    gateway: Gateway, capsys: Capture
) -> None:
    run(capsys, "policy", "add", "p", "--action", "bypass", "--remote-ts", "10.9.0.0/16")
    assert run(capsys, "policy", "delete", "p") == "deleted: p\n"
    assert run(capsys, "sa", "delete", "office/out") == "deleted: office/out\n"
    assert json.loads(run(capsys, "sa", "delete", "a", "--json")) == {}
    assert json.loads(run(capsys, "policy", "delete", "b", "--json")) == {}
    assert gateway.asked == [
        ("AddPolicy", {"name": "p", "action": "bypass", "remote_ts": ["10.9.0.0/16"]}),
        ("DeletePolicy", {"name": "p"}),
        ("DeleteSa", {"name": "office/out"}),
        ("DeleteSa", {"name": "a"}),
        ("DeletePolicy", {"name": "b"}),
    ]


def test_flush_asks_first_and_needs_yes_without_a_terminal(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "add --yes" in fail(capsys, "sa", "flush", status=2)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sa_commands.click, "confirm", lambda *_args, **_options: False)
    assert run(capsys, "sa", "flush") == ""
    assert gateway.asked == []
    monkeypatch.setattr(sa_commands.click, "confirm", lambda *_args, **_options: True)
    assert run(capsys, "sa", "flush") == "deleted: a, b\n"
    assert run(capsys, "sa", "flush", "--yes") == "deleted: a, b\n"
    assert [name for name, _ in gateway.asked] == ["FlushSas", "FlushSas"]


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (ControlError("NotFound", "no SA 'x'", hint="see 'esp-gw sa list'"),
         "esp-gw: error: no SA 'x'; see 'esp-gw sa list'\n"),
        (EngineError("no TUN", where="esp0"), "esp-gw: error: esp0: no TUN\n"),
        (EngineError("two\nlines\x1b[2J"), "esp-gw: error: two\\nlines\\x1b[2J\n"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_and_status_1(
    gateway: Gateway, capsys: Capture, raised: Exception, line: str
) -> None:
    gateway.replies["GetSa"] = raised
    assert fail(capsys, "sa", "show", "x") == line


def test_without_a_daemon_every_command_says_so(tmp_path: Path, capsys: Capture) -> None:
    for _, command in READING:
        err = fail(capsys, "--socket", str(tmp_path / "none"), *command, status=3)
        assert err.startswith(
            f"esp-gw: error: esp-gw is not running (no control socket at {tmp_path}"
        )
        assert err.count("\n") == 1


def raising(error: BaseException) -> Callable[..., object]:
    def call(*_args: object, **_parameters: object) -> object:
        raise error

    return call


def test_an_unexpected_exception_is_one_line_without_keys(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESP_GW_DEBUG", raising=False)
    monkeypatch.setattr("esp_gw.cli.options.call", raising(KeyError("a\nb" + "a0b1" * 9)))
    err = fail(capsys, "status")
    assert err.startswith("esp-gw: internal error: KeyError: ")
    assert err.count("\n") == 1
    assert "a0b1" not in err
    monkeypatch.setenv("ESP_GW_DEBUG", "1")
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "a0b1" not in err


def test_an_interrupted_command_exits_with_130(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.cli.options.call", raising(KeyboardInterrupt()))
    assert main(["status"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def esp_gw(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esp_gw.cli.main", *args]
    return subprocess.run(
        command,
        text=True,
        stderr=subprocess.PIPE,
        check=False,
        **{"stdout": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize("command", [("sa", "list"), ("sa", "list", "--json")])
def test_a_closed_pipe_ends_the_command_silently(
    gateway: Gateway, command: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = esp_gw(*command, stdout=writer)
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 1


def test_json_output_imports_no_heavy_library(gateway: Gateway) -> None:
    heavy = {"cryptography", "pydantic", "pyroute2", "logging", "asyncio", "sqlite3"}
    code = (
        "import sys; from esp_gw.cli.main import main; assert main(['sa', 'list', '--json']) == 0;"
        f"sys.exit(' '.join({heavy} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == ""
    assert json.loads(result.stdout) == REPLIES["ListSas"]


def test_only_the_python_engine_needs_pyca_cryptography() -> None:
    code = "import sys, esp_gw.daemon.main; sys.exit('cryptography' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_and_usage(capsys: Capture) -> None:
    assert run(capsys, "--version") == "esp-gw 0.1.0\n"
    assert "wg" in fail(capsys, "wg", status=2)
    for group, command in (
        ("sa", "flush"),
        ("policy", "add"),
        ("tunnel", "list"),
        ("ledger", "show"),
    ):
        assert command in run(capsys, group, "--help")


@pytest.mark.parametrize("words", [(), ("sa",), ("policy",)])
def test_a_group_without_a_command_prints_its_help(capsys: Capture, words: tuple[str, ...]) -> None:
    err = fail(capsys, *words, status=2)
    assert err.startswith(f"Usage: {' '.join(('esp-gw', *words))} ")
    assert len(err.splitlines()) > 5


@pytest.mark.parametrize("words", [("wg",), ("sa", "wg"), ("sa", "show"), ("status", "--wg")])
def test_a_wrong_command_line_is_one_line_that_names_the_help(
    capsys: Capture, words: tuple[str, ...]
) -> None:
    (line,) = fail(capsys, *words, status=2).splitlines()
    assert line.startswith("esp-gw")
    assert line.endswith(" --help'")
