"""`esp-gw init --ike`: what it writes and prints, and the options that don't fit."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.commands import Capture, fail, run

INIT = shlex.split(
    "init --ike --local 203.0.113.1 --remote 198.51.100.1"
    " --local-net 10.1.0.0/24 --remote-net 10.2.0.0/24"
)


def test_it_writes_both_ends_and_prints_the_commands_of_each(
    tmp_path: Path, capsys: Capture
) -> None:
    out = run(capsys, *INIT, "--out", str(tmp_path), "--name-b", "office")
    for name, peer, host in (("pi-a", "office", "203.0.113.1"), ("office", "pi-a", "198.51.100.1")):
        assert f"Copy the folder {tmp_path / name} to {host} and run there:\n" in out
        assert f"  sudo cp {name}/gateway.yaml /etc/esp-gw\n" in out
        assert f"  sudo cp -r {name}/swanctl/. /etc/swanctl\n" in out
        assert (tmp_path / name / "swanctl/conf.d" / f"{peer}.conf").exists()
    for command in ("./scripts/install-ike", "esp-gw ledger create", "swanctl --load-all"):
        assert out.count(f"  sudo {command}") == 2
    assert "--same-boards" not in out
    secret = (tmp_path / "pi-a/swanctl/conf.d/office.secrets.conf").read_text()
    (value,) = [line.split()[-1] for line in secret.splitlines() if "secret =" in line]
    assert value.removeprefix("0x") not in out
    checked = run(capsys, "config", "check", *(str(tmp_path / name) for name in ("pi-a", "office")))
    assert checked.count(": ok, ") == 2


def test_it_never_overwrites(tmp_path: Path, capsys: Capture) -> None:
    run(capsys, *INIT, "--out", str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "exists already" in fail(capsys, *INIT, "--out", str(tmp_path))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--sas 2", "--sas has no meaning with --ike"),
        ("--sas 1", "--sas has no meaning with --ike"),
        ("--same-boards", "--same-boards has no meaning with --ike"),
        ("--mode transport", "transport mode protects what the two machines send"),
        ("--remote-net fd00::/64 --local-net fd01::/64 --remote 203.0.113.1", "the outer address"),
        ("--local-net fd01::/64", "of different IP versions"),
        ("--name-b pi-a", "both sides have the name"),
        ("--suite aes256cbc", "suite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_writes_nothing(
    tmp_path: Path, capsys: Capture, given: str, words: str
) -> None:
    out = tmp_path / "out"
    status = 2 if given.startswith(("--sa", "--suite")) else 1
    err = fail(capsys, *INIT, "--out", str(out), *shlex.split(given), status=status)
    assert words in err
    assert not out.exists()


def test_certificates_are_for_ike_alone(tmp_path: Path, capsys: Capture) -> None:
    manual = [word for word in INIT if word != "--ike"]
    err = fail(capsys, *manual, "--certificates", "--out", str(tmp_path / "out"), status=2)
    assert "--certificates needs --ike" in err
    assert not (tmp_path / "out").exists()


def test_without_pki_no_half_of_it_is_left(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    err = fail(capsys, *INIT, "--certificates", "--out", str(tmp_path / "out"))
    assert "strongswan-pki" in err
    assert not (tmp_path / "out").exists()
