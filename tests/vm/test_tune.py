"""Traffic with and without a setting, on a machine whose settings may be changed."""

from __future__ import annotations

import json
import sys
from statistics import median

import pytest

from tests.support.guest import Guest

PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
RECORD = "/var/lib/esp-gw-tune/made.json"


def tune(guest: Guest, *options: str) -> str:
    program = (sys.executable, "-m", "esp_gw.cli.main", "tune", *options)
    result = guest.run(*program, "--config", "/none")
    assert result.status == 0, result.tail
    return result.stdout


def pages(guest: Guest) -> str:
    return guest.run("cat", PAGES).stdout


@pytest.mark.vm_full
def test_a_setting_is_measured_by_traffic_and_left_as_it_was_or_kept(guest: Guest) -> None:
    assert guest.run("sh", "-c", f"echo never >{PAGES}").status == 0
    found = json.loads(tune(guest, "--measure", "--json"))
    assert "[never]" in pages(guest)
    assert guest.run("test", "-e", RECORD).status == 1
    assert len(found["rounds"]) == 3
    for figure in ("gbit_s", "rtt_us"):
        told = found["medians"][figure]
        for side in ("without", "with"):
            values = [each[side][figure] for each in found["rounds"]]
            assert min(values) > 0
            assert told[side] == median(values)
        assert told["ratio"] == pytest.approx(told["with"] / told["without"], abs=0.001)
    text = tune(guest, "--measure", "--apply")
    assert text.startswith("MEDIAN OF 3")
    assert "huge_pages: never -> madvise" in text
    assert "[madvise]" in pages(guest)
    assert tune(guest, "--undo") == "huge_pages: madvise -> never\n1 setting taken back\n"
    assert "[never]" in pages(guest)
