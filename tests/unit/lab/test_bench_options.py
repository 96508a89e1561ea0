"""Wrong options of the benchmark are reported before it measures or installs anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.bench.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fast"], "--fast"),
        (["--json"], "--json"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at: can't write to it"),
        (["--json", "/proc/bench.json"], "/proc: can't write to it"),
        (["--json", "/"], "--json"),
        (["--plot", "/proc/plots/new"], "/proc: can't write to it"),
        (["--plot", "/etc/passwd"], "--plot"),
        (["--plot", "/etc/passwd/plots"], "/etc/passwd: can't write to it"),
        (["--rounds", "0"], "--rounds"),
        (["--only", "everything"], "--only"),
        (["--system", "veth", "--system", "ipsec"], "no system is called 'ipsec'"),
        (["--system", "veth", "--test", "memory"], "nothing to measure"),
        (["--baseline", "/nowhere"], "--baseline"),
        (["--baseline", "/usr"], "/usr: no checkout with a native engine"),
        (["surplus"], "surplus"),
    ],
)
def test_a_wrong_option_is_reported_on_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check", *arguments]) != 0
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("bench: error: ")
    assert words in line
    assert output.out == ""


def test_valid_options_print_nothing_and_create_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "results.json", tmp_path / "plots" / "new"
    assert main(["--quick", "--json", str(file), "--plot", str(folder), "--check"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
