"""The login by ssh is found in the environment, or above sudo, which clears it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.cli.login import find_login
from esp_gw.network.surroundings import Login

SSH = "198.51.100.7 51234 192.168.1.10 22"
LOGIN = Login(ip_address("198.51.100.7"), ip_address("192.168.1.10"), 22)


def process(proc: Path, pid: int, parent: int, **environment: str) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    entries = [f"{name}={value}".encode() for name, value in environment.items()]
    (folder / "environ").write_bytes(b"\0".join(entries) + b"\0")
    (folder / "stat").write_text(f"{pid} (a ) program) S {parent} 1 1\n")


def test_the_own_environment_comes_first() -> None:
    assert find_login({"SSH_CONNECTION": SSH}, pid=1) == LOGIN
    assert find_login({}, pid=1) is None


def test_sudo_hides_it_from_the_own_environment_alone(tmp_path: Path) -> None:
    process(tmp_path, 30, 20, PATH="/bin")
    process(tmp_path, 20, 10, SSH_CONNECTION=SSH, PATH="/bin")
    process(tmp_path, 10, 1)
    assert find_login({}, 30, tmp_path) == LOGIN
    assert find_login({}, 10, tmp_path) is None
    assert find_login({}, 99, tmp_path) is None


def test_an_ipv6_peer_may_have_a_zone() -> None:
    found = find_login({"SSH_CONNECTION": "fe80::7%eth0 51234 fe80::1%eth0 22"})
    assert found == Login(ip_address("fe80::7"), ip_address("fe80::1"), 22)


@pytest.mark.parametrize("text", ["UNKNOWN", "a b c d", "198.51.100.7 1 192.168.1.10", "1 2 3 x"])
def test_what_is_no_connection_is_none(text: str) -> None:
    assert find_login({"SSH_CONNECTION": text}) is None


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    process(tmp_path, 20, 30)
    process(tmp_path, 30, 20)
    assert find_login({}, 30, tmp_path) is None
