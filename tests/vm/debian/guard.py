"""The guard beside the gateway, and alone."""

from __future__ import annotations

from tests.support.debian import Debian, sent_to
from tests.vm.inside.talker import BOUND, OPEN, ROUTED

GUARD = "esp-gw-guard"
TABLE = "inet esp_gw"


class GuardBeside:
    def test_opening_is_refused_while_the_gateway_runs(self, running: Debian) -> None:
        refused = running.run("esp-gw", "guard", "down")
        assert refused.status == 1
        assert "esp-gw runs" in refused.stderr
        running.assert_closed()
        running.assert_carries()

    def test_flushed_rules_come_back_while_the_gateway_runs(self, running: Debian) -> None:
        flushes_and_waits(running, "nft", "flush", "ruleset")
        running.wait_for_journal("another program removed", "-p", "warning..warning")


class Closed:
    def test_everything_until_now_was_closed(self, machine: Debian) -> None:
        """But for datagrams of bound sockets between the deletion and the repair of the filter."""
        sent = machine.sent()
        first = next(packet.index for packet in sent if packet.is_esp)
        since = [packet for packet in sent if packet.index > first]
        assert sent_to(since, OPEN)
        assert sent_to(since, ROUTED) == []


class GuardAlone:
    def test_flushed_rules_come_back_without_the_gateway(self, machine: Debian) -> None:
        machine.ok("systemctl", "stop", "esp-gw")
        flushes_and_waits(machine, "systemctl", "restart", "nftables")

    def test_a_killed_guard_opens_nothing_and_comes_back(self, machine: Debian) -> None:
        pid = machine.show(GUARD)["MainPID"]
        machine.ok("systemctl", "kill", "--signal=KILL", GUARD)
        machine.assert_closed()

        def is_back() -> bool:
            shown = machine.show(GUARD)
            return shown["ActiveState"] == "active" and shown["MainPID"] != pid

        machine.wait_for(is_back, pause=2)
        machine.assert_closed()

    def test_opening_lets_everything_out_and_says_so(self, machine: Debian) -> None:
        opened = machine.ok("esp-gw", "guard", "down")
        assert opened.startswith("open: ")
        later = machine.later()
        for addresses in (ROUTED, BOUND):
            assert {str(packet.destination) for packet in sent_to(later, addresses)} == set(
                addresses
            )


def flushes_and_waits(machine: Debian, *command: str) -> None:
    """Check that routes close what is routed at every moment, and the filter is repaired."""
    before = len(machine.sent())
    machine.ok(*command)
    machine.wait_for(lambda: TABLE in machine.ok("nft", "list", "tables"))
    machine.assert_closed()
    assert sent_to(machine.sent()[before:], ROUTED) == []
