"""`tunnel add`, `set` and `delete`: the requests that they make, and what they refuse."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from esp_gw.config.added import parse_policy_entry, parse_sa_entry
from esp_gw.config.keyfile import generate, write_key_file
from esp_gw.model import SUITES
from tests.support.canned import Gateway
from tests.support.commands import Capture, fail, run


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Key files by direction."""
    paths = {side: tmp_path / side for side in ("outbound", "inbound")}
    for path in paths.values():
        write_key_file(path, [generate(SUITES["aes256gcm16"])])
    return {side: str(path) for side, path in paths.items()}


def key_in(path: str) -> str:
    return Path(path).read_text().splitlines()[-1]


ADD = (
    "tunnel add office --local 192.0.2.1 --remote 198.51.100.7 --local-ts 10.1.0.0/24 "
    "--remote-ts 10.2.0.0/24 --outbound-spi 0x1001 --inbound-spi 0x1002"
)


def add(keys: dict[str, str], *more: str) -> list[str]:
    files = [f"--{side}-key={path}" for side, path in keys.items()]
    return [*shlex.split(ADD), *files, *more]


def test_add_sends_one_request_and_shows_the_tunnel(
    gateway: Gateway, capsys: Capture, keys: dict[str, str]
) -> None:
    out = run(capsys, *add(keys, "--liveness", "10", "--before", "p"))
    assert out.startswith("tunnel: office\n  state: up")
    assert gateway.asked[0] == ("AddTunnel", {
        "name": "office", "local": "192.0.2.1", "remote": "198.51.100.7",
        "local_ts": ["10.1.0.0/24"], "remote_ts": ["10.2.0.0/24"], "liveness": 10, "before": "p",
        "outbound": {"spi": 0x1001, "key": key_in(keys["outbound"])},
        "inbound": {"spi": 0x1002, "key": key_in(keys["inbound"])},
    })  # fmt: skip
    for path in keys.values():
        assert key_in(path) not in out


def test_the_daemon_understands_every_option(
    gateway: Gateway, capsys: Capture, keys: dict[str, str]
) -> None:
    more = (
        "--remote-port 4501 --encapsulation udp --suite aes256gcm16 --no-esn --replay-window 128 "
        "--keepalive 0 --protocol tcp --local-ts-port 80 --remote-ts-port 1-2"
    )
    assert "tunnel" in json.loads(run(capsys, *add(keys, *shlex.split(more), "--json")))
    parameters = dict(gateway.asked[0][1])
    half = parameters.pop("outbound")
    del parameters["inbound"]
    assert isinstance(half, dict)
    entry = parse_sa_entry({**parameters, **half, "direction": "outbound"})
    assert (entry.esn, entry.keepalive, str(entry.remote_ts_port)) == (False, 0, "1-2")


def test_only_one_key_comes_from_stdin(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    text = key_in(keys["outbound"]) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    run(capsys, *add(keys | {"outbound": "-"}))
    assert gateway.asked[0][1]["outbound"] == {"spi": 0x1001, "key": text.strip()}
    err = fail(capsys, *add({"outbound": "-", "inbound": "-"}), status=2)
    assert "only one of the two keys can come from stdin" in err


def test_a_key_on_the_command_line_is_refused_and_not_told(
    gateway: Gateway, capsys: Capture, keys: dict[str, str]
) -> None:
    secret = key_in(keys["inbound"])
    err = fail(capsys, *add(keys | {"inbound": secret}), status=2)
    assert "--inbound-key: this is a key" in err.replace("Invalid value for ", "")
    assert secret not in err
    assert gateway.asked == []


def test_set_sends_what_is_given(gateway: Gateway, capsys: Capture) -> None:
    run(capsys, "tunnel", "set", "office", *shlex.split("--liveness 0 --no-esn --remote gw.lan"))
    run(
        capsys, "tunnel", "set", "office", *shlex.split("--remote-ts fd00::/64 --remote-ts fd01::1")
    )
    changes = [parameters for name, parameters in gateway.asked if name == "SetTunnel"]
    assert changes == [
        {"name": "office", "liveness": 0, "esn": False, "remote": "gw.lan"},
        {"name": "office", "remote_ts": ["fd00::/64", "fd01::1/128"]},
    ]
    assert parse_policy_entry(
        {"name": "p", "action": "discard", "remote_ts": changes[1]["remote_ts"]}
    )


def test_set_without_an_option_is_a_usage_error(gateway: Gateway, capsys: Capture) -> None:
    assert "nothing to change" in fail(capsys, "tunnel", "set", "office", status=2)
    assert gateway.asked == []


def test_delete_says_what_it_did(gateway: Gateway, capsys: Capture) -> None:
    assert run(capsys, "tunnel", "delete", "office") == "deleted: office\n"
    assert json.loads(run(capsys, "tunnel", "delete", "office", "--json")) == {}
    assert gateway.asked == [("DeleteTunnel", {"name": "office"})] * 2
