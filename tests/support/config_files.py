"""Configuration files for the tests: a tunnel `b`, its key files, and the faults of a load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from esp_gw.config.keyfile import generate, write_key_file
from esp_gw.config.load import load_config
from esp_gw.desired import Desired
from esp_gw.errors import ConfigError
from esp_gw.model import DEFAULT_SUITE, KeyMaterial

TUNNEL = """\
tunnels:
  b:
    local: 192.0.2.1
    remote: 192.0.2.2
    local_ts: 10.1.0.0/24
    remote_ts: 10.2.0.0/24
    outbound: {spi: 0x1001, key: {file: keys/b.out.key}}
    inbound: {spi: 4098, key: {file: keys/b.in.key}}
"""


def transport(text: str = TUNNEL) -> str:
    """The tunnel in transport mode, without its inner prefixes."""
    return re.sub(r"    (local|remote)_ts: .*\n", "", text) + "    mode: transport\n"


def write_keys(
    folder: Path, out: int = 1, in_: int = 1, tunnel: str = "b"
) -> dict[str, list[KeyMaterial]]:
    """Write `out` and `in_` fresh keys of the default suite to keys/TUNNEL.out.key and .in.key."""
    (folder / "keys").mkdir(exist_ok=True)
    made = {}
    for name, count in ((f"{tunnel}.out", out), (f"{tunnel}.in", in_)):
        made[name] = [generate(DEFAULT_SUITE) for _ in range(count)]
        replace_key_file(folder, name, made[name])
    return made


def replace_key_file(folder: Path, name: str, keymats: list[KeyMaterial]) -> None:
    path = folder / "keys" / f"{name}.key"
    path.unlink(missing_ok=True)
    write_key_file(path, keymats, "for a test")


def write(folder: Path, text: str, name: str = "gw.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load(folder: Path, text: str = TUNNEL) -> Desired:
    return load_config(write(folder, text))


def problems(path: Path) -> list[str]:
    """Every problem of a file or folder, without the path of the folder in front."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    found = [str(problem) for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(found)
    assert all(len(text.splitlines()) == 1 for text in found)
    top = path if path.is_dir() else path.parent
    return [text.removeprefix(f"{top}/") for text in found]


def faults(folder: Path, text: str) -> list[str]:
    return problems(write(folder, text))


def only_fault(folder: Path, text: str) -> str:
    found = faults(folder, text)
    assert len(found) == 1, found
    return found[0]
