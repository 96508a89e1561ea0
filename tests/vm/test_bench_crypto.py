"""`bench crypto` on a processor without AES instructions, with AF_ALG available."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.vm.machine import Machine
from tests.support.guest import Guest, MakeSetup

pytestmark = pytest.mark.vm_full
SUITES = {"aes256gcm16", "aes128gcm16", "chacha20poly1305"}
INIT = (
    "esp-gw init --same-boards --out /tmp/two --local 192.0.2.1 --remote 192.0.2.2"
    " --local-net 10.1.0.0/24 --remote-net 10.2.0.0/24"
)


@pytest.fixture(scope="module")
def old(make_setup: MakeSetup) -> Iterator[Guest]:
    """A processor of 2006, with SSSE3 but no AES instructions."""
    setup = make_setup(cpu="qemu64,+ssse3")
    with Machine(setup) as machine:
        yield Guest(machine, setup)


def test_every_library_and_the_kernel_are_measured_without_aes_instructions(old: Guest) -> None:
    """The figures of an emulator mean nothing; their presence does."""
    result = old.run("esp-gw", "bench", "crypto", "--json")
    assert (result.status, result.stderr) == (0, ""), result.tail
    found = json.loads(result.stdout)
    assert found["aes"] == "none"
    assert found["missing"] == []
    providers = {"openssl", "af-alg"} | ({"aws-lc"} if found["engine"] == "native" else set())
    assert {(entry["provider"], entry["suite"], entry["size"]) for entry in found["figures"]} == {
        (provider, suite, size)
        for provider in providers
        for suite in SUITES
        for size in (64, 576, 1400)
    }


def test_a_suite_is_recommended_for_two_such_boards_by_measurement(old: Guest) -> None:
    result = old.run("sh", "-c", f"{INIT} && esp-gw config check /tmp/two/pi-a")
    assert (result.status, result.stderr) == (0, ""), result.tail
    assert "times as fast as" in result.stdout or "about as fast as" in result.stdout
    assert result.stdout.splitlines()[-1] == "/tmp/two/pi-a: ok, 1 tunnel, 2 SAs"
