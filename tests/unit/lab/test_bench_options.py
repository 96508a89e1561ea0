"""What the benchmark says of wrong options, before it measures or installs anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.bench.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fast"], "--fast"),
        (["--json"], "--json"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at: can't write there"),
        (["--json", "/proc/bench.json"], "/proc: can't write there"),
        (["--json", "/"], "--json"),
        (["--plot", "/proc/plots/new"], "/proc: can't write there"),
        (["--plot", "/etc/passwd"], "--plot"),
        (["--plot", "/etc/passwd/plots"], "/etc/passwd: can't write there"),
        (["--rounds", "0"], "--rounds"),
        (["--only", "everything"], "--only"),
        (["--system", "veth", "--system", "ipsec"], "no system is called 'ipsec'"),
        (["--system", "veth", "--test", "memory"], "nothing to measure"),
        (["surplus"], "surplus"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check", *arguments]) != 0
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("bench: error: ")
    assert words in line
    assert output.out == ""


def test_right_options_are_not_worth_a_word_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "results.json", tmp_path / "plots" / "new"
    assert main(["--quick", "--json", str(file), "--plot", str(folder), "--check"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
