"""docs/interop.md: generated from test results, and naming only tests that exist."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from esp_gw.errors import LabError
from lab.interop import Trial, main, page, read

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 5, 4, tzinfo=UTC)
TRIAL = Trial("tests/t.py", "test_it", True, "Peer 1.2", "tunnel", "pings", "native")


def test_a_row_counts_passed_tests_for_each_engine() -> None:
    trials = [
        TRIAL,
        replace(TRIAL, tried="a stream"),
        replace(TRIAL, engine="python"),
        replace(TRIAL, engine="python", passed=False),
        replace(TRIAL, configuration="transport"),
    ]
    text = page(trials, NOW)
    assert "Tried on 2026-05-04 with esp_gw " in text
    assert "## Peer 1.2" in text
    assert "- pings\n- a stream\n" in text
    assert "| configuration | native | python |" in text
    assert "| tunnel | 2 of 2 | **1 of 2** |" in text
    assert "| transport | 1 of 1 | not tried |" in text
    assert "- `tests/t.py`: `test_it`\n" in text


def test_every_peer_has_its_own_section() -> None:
    text = page([TRIAL, replace(TRIAL, peer="Another 3", configuration="x")], NOW)
    sections = text.split("## ")[1:]
    assert [section.splitlines()[0] for section in sections] == ["Another 3", "Peer 1.2"]
    assert "| x |" in sections[0]
    assert "| x |" not in sections[1]


def test_sections_of_peers_that_were_not_tried_stay_as_they_are() -> None:
    trials = [replace(TRIAL, peer="Another 3"), TRIAL, replace(TRIAL, peer="Third 1")]
    former = page(trials, NOW)
    text = page([replace(TRIAL, passed=False)], datetime(2026, 6, 1, tzinfo=UTC), former)
    head, another, peer, third = text.split("## ")
    assert [head, another, third] == [former.split("## ")[place] for place in (0, 1, 3)]
    assert "2026-06-01" in peer and "**0 of 1**" in peer and "2026-05-04" not in peer
    assert page(trials, NOW, text) == former


def test_the_former_page_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, former = tmp_path / "results", tmp_path / "page.md"
    results.write_text(json.dumps(asdict(TRIAL)) + "\n")
    former.write_text("# Page\n\n## Another 3\n\nTried:\n- x\n")
    assert main([f"--former={former}", str(results)]) == 0
    assert "## Another 3\n\nTried:\n- x\n\n## Peer 1.2\n" in capsys.readouterr().out
    assert main([str(results)]) == 0
    assert "Another 3" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["", "no", "[]", "{}", '{"peer": 1}', json.dumps({**asdict(TRIAL), "more": 1})]
)
def test_a_malformed_result_is_reported_by_line_number(line: str, tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text(f"{json.dumps(asdict(TRIAL))}\n{line}\n")
    with pytest.raises(LabError, match=re.escape(f"{file}:2")):
        read(file)


def test_an_empty_and_a_missing_file_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    assert main([str(tmp_path / "empty")]) == 1
    assert main([str(tmp_path / "none")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert [line.startswith("interop: error: ") for line in output.err.splitlines()] == [True, True]


def test_the_page_in_docs_names_existing_tests() -> None:
    text = (ROOT / "docs/interop.md").read_text()
    named = re.findall(r"^- `(tests/.*\.py)`: (.*)$", text, re.MULTILINE)
    assert named
    for file, tests in named:
        source = (ROOT / file).read_text()
        for test in re.findall(r"`(\w+)`", tests):
            assert f"def {test}(" in source, f"{file} has no {test}: run ./scripts/interop"
