"""The help says what is what."""

from __future__ import annotations

import pytest

from tests.support.commands import Capture, run


@pytest.mark.parametrize("command", [("sa", "add"), ("policy", "add")])
def test_the_help_of_a_side_names_it(capsys: Capture, command: tuple[str, ...]) -> None:
    text = " ".join(run(capsys, *command, "--help").split())
    assert "--remote-ts NET Prefix behind the peer. Repeatable." in text
    assert "--local-ts NET Prefix behind us. Repeatable." in text
