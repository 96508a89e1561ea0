"""The record: what root would write by it can be nothing but a value of a known knob."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from esp_gw.errors import WRONG_STATE, EspGwError
from esp_gw.tune.knobs import KNOBS, Place, as_written, fault_of, in_one_form
from esp_gw.tune.making import Entry, Record
from esp_gw.tune.record import RecordDamagedError, RecordFile

RECORD = Record(
    "boot",
    {
        Place("rps_cpus", "eth0", "rx-0"): Entry("0", ("e",)),
        Place("governor", part="policy0"): Entry("ondemand", ("performance",)),
        Place("irq_cpus", "ens3", "virtio0-input.0#0"): Entry("f", ("1", "2")),
        Place("feature", "eth0", "tx-tcp-segmentation"): Entry("on", ("off",)),
        Place("swappiness"): Entry("60", ("10",)),
    },
)


@pytest.fixture
def book(tmp_path: Path) -> RecordFile:
    made = RecordFile(tmp_path / "record")
    made.create()
    return made


def test_it_comes_back_as_it_was_kept_for_root_alone(book: RecordFile) -> None:
    assert book.load() == Record()
    book.save(RECORD)
    assert book.load() == RECORD
    assert list(book.load().entries) == list(RECORD.entries)
    assert (book.path.stat().st_mode & 0o777, book.path.parent.stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )
    book.save(Record())
    assert not book.path.exists()
    book.save(Record())


@pytest.mark.parametrize(
    "entry",
    [
        {"knob": "core_pattern"},
        {"card": ""},
        {"card": ".."},
        {"card": "a/b"},
        {"card": "eth0\n"},
        {"part": "../rx-0"},
        {"part": "rx-0/../../../../../etc/passwd"},
        {"part": "rx-0\n"},
        {"former": "0\n0"},
        {"former": "|/bin/sh"},
        {"former": 7.5},
        {"ours": []},
        {"ours": ["e", "x y"]},
        {"ours": None},
        {"knob": "governor", "card": "", "part": "policy0", "former": "../x"},
        {"knob": "swappiness", "card": "eth0", "part": "", "former": "1", "ours": ["2"]},
        {"knob": "irq_cpus", "part": "eth0#0/.."},
    ],
)
def test_anything_but_a_known_place_and_value_is_refused(
    book: RecordFile, entry: dict[str, Any]
) -> None:
    whole = {"knob": "rps_cpus", "card": "eth0", "part": "rx-0", "former": "0", "ours": ["e"]}
    book.path.write_text(json.dumps({"version": 1, "boot": "b", "entries": [whole]}))
    assert book.load().entries
    book.path.write_text(json.dumps({"version": 1, "boot": "b", "entries": [whole | entry]}))
    with pytest.raises(RecordDamagedError) as caught:
        book.load()
    assert caught.value.exit_status == WRONG_STATE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"version": 2}', '{"version": 1, "boot": "b", "entries": {}}'],
)
def test_a_damaged_file_is_refused_in_one_line(book: RecordFile, text: str) -> None:
    book.path.write_text(text)
    with pytest.raises(RecordDamagedError, match="move it away"):
        book.load()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(book: RecordFile, mode: int) -> None:
    book.save(RECORD)
    book.path.chmod(mode)
    with pytest.raises(RecordDamagedError, match="others may write it"):
        book.load()


def test_a_file_of_another_user_is_refused(
    book: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.save(RECORD)
    if os.geteuid() == 0:
        os.chown(book.path, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(RecordDamagedError, match="others may write it"):
        book.load()


def test_a_pipe_or_a_link_to_nowhere_is_no_record(book: RecordFile, tmp_path: Path) -> None:
    os.mkfifo(book.path)
    with pytest.raises(EspGwError):
        book.load()


def test_every_knob_takes_what_it_shows() -> None:
    shown = {
        "rps_cpus": ("00000000,0000000e\n", "e"),
        "xps_cpus": ("00\n", "0"),
        "huge_pages": ("always [madvise] never\n", "madvise"),
        "governor": ("ondemand\n", "ondemand"),
        "swappiness": ("60\n", "60"),
    }
    for knob, (text, value) in shown.items():
        assert in_one_form(knob, text) == value
        assert in_one_form(knob, as_written(knob, value)) == value
    assert as_written("rps_cpus", "100000000") == "00000001,00000000"
    with pytest.raises(ValueError, match="invalid literal"):
        in_one_form("rps_cpus", "what")


def test_no_place_leads_out_of_the_folders_of_the_kernel() -> None:
    assert all(knob.path.startswith(("sys/", "proc/")) for knob in KNOBS.values() if knob.path)
    assert fault_of(Place("rps_cpus", "eth0", "rx-0"), "e") is None
    assert fault_of(Place("rps_cpus", "e" * 16, "rx-0")) is not None
