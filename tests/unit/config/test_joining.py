"""A tunnel added to a configuration: its files and the folders made for it, and their owner."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.config.joining import add_end
from esp_gw.config.offer import End, Offer, Terms, draw
from esp_gw.desired import Desired
from esp_gw.errors import EspGwError
from esp_gw.model import SUITES, Encapsulation, Mode

OWNER = (4711, 4712)


def offer() -> Offer:
    local, remote = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    here = End("a", local, (ip_network("10.1.0.0/24"),), written=local)
    there = End("b", remote, (ip_network("10.2.0.0/24"),))
    terms = Terms(Mode.TUNNEL, Encapsulation.UDP, SUITES["aes256gcm16"], 1)
    return draw(here, there, terms)


def agree(_desired: Desired) -> None:
    pass


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[Path, tuple[int, int]]:
    """The paths that were given to an owner."""
    found: dict[Path, tuple[int, int]] = {}

    def chown(path: Path, user: int, group: int) -> None:
        found[Path(path)] = (user, group)

    monkeypatch.setattr(os, "chown", chown)
    return found


def test_what_is_made_belongs_to_the_owner_folders_included(
    tmp_path: Path, given: dict[Path, tuple[int, int]]
) -> None:
    folder = tmp_path / "etc" / "esp-gw"
    added = add_end(folder, offer(), OWNER, agree)
    made = {folder.parent, folder, folder / "keys", added.file, *added.keys}
    assert given == dict.fromkeys(made, OWNER)
    assert {path.stat().st_mode & 0o077 for path in made} == {0}


def test_folders_that_were_there_keep_their_owner(
    tmp_path: Path, given: dict[Path, tuple[int, int]]
) -> None:
    (tmp_path / "keys").mkdir()
    added = add_end(tmp_path, offer(), OWNER, agree)
    assert set(given) == {added.file, *added.keys}


def test_without_an_owner_nothing_is_given_and_after_a_refusal_nothing_is_left(
    tmp_path: Path, given: dict[Path, tuple[int, int]]
) -> None:
    def refuse(_desired: Desired) -> None:
        raise EspGwError("no")

    with pytest.raises(EspGwError, match="no"):
        add_end(tmp_path / "etc", offer(), None, refuse)
    assert list(tmp_path.iterdir()) == []
    add_end(tmp_path / "etc", offer(), None, agree)
    assert given == {}


def test_a_second_tunnel_of_a_name_and_a_place_that_is_no_folder_are_told(tmp_path: Path) -> None:
    add_end(tmp_path / "etc", offer(), None, agree)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(EspGwError, match="has a tunnel b already; delete that tunnel"):
        add_end(tmp_path / "etc", offer(), None, agree)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    (tmp_path / "file").write_text("")
    for place in ("file", "file/inside"):
        with pytest.raises(EspGwError, match=r"file: Not a directory$"):
            add_end(tmp_path / place, offer(), None, agree)
