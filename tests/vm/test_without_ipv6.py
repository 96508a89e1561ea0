"""A kernel booted with ipv6.disable=1, as some administrators do: IPv4 is guarded and carried."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from lab.vm.machine import Machine
from tests.support.guest import Guest, MakeSetup

pytestmark = pytest.mark.vm_full


def test_ipv4_is_guarded_and_carried_and_status_tells_of_ipv6(make_setup: MakeSetup) -> None:
    setup = replace(make_setup(), options=("ipv6.disable=1",))
    with Machine(setup) as machine:
        result = Guest(machine, setup).run(sys.executable, "-m", "tests.vm.inside.without_ipv6")
    assert result.status == 0, result.tail
    found = json.loads(result.stdout)
    assert found["ipv6"] is False
    assert found["guarded"] == ["unreachable 10.2.0.0/24"]
    assert (found["leaves"], found["reaches"], found["ends"]) == (False, True, 0), result.tail
    assert any("fd00:2::/64" in warning for warning in found["warnings"]), found["warnings"]
    for log in found["logs"]:
        assert "error" not in log and "Traceback" not in log, log
