"""A boot with a late network, on a wire that is captured from power-on to power-off."""

from __future__ import annotations

from tests.support.debian import Debian, leaked, sent_to
from tests.vm.inside.talker import BOUND, OPEN


class LateNetwork:
    def test_the_guard_is_there_before_the_network(self, machine: Debian) -> None:
        machine.power_off()
        machine.boot()
        machine.plug(up=False)
        # Waits for the start that the boot has begun.
        machine.ok("systemctl", "start", "esp-gw-guard")
        assert machine.show()["ActiveState"] != "active"
        assert int(machine.ok("cat", "/run/talker/rounds")) > 0
        assert "closed" in machine.ok("esp-gw", "guard", "status")
        assert machine.sent() == []

    def test_the_guard_alone_keeps_closed_what_the_gateway_then_carries(
        self, machine: Debian
    ) -> None:
        machine.plug(up=True)
        machine.wait_active()
        machine.assert_carries()
        sent = machine.sent()
        first = next(packet.index for packet in sent if packet.is_esp)
        alone = [packet for packet in sent if packet.index < first]
        assert {str(packet.destination) for packet in sent_to(alone, OPEN)} == set(OPEN)
        assert leaked(alone) == []

    def test_nothing_has_failed(self, machine: Debian) -> None:
        assert machine.ok("systemctl", "--failed", "--plain", "--no-legend") == ""
        told = machine.ok("journalctl", "-b", "-q", "-o", "cat", "_PID=1")
        assert "ordering cycle" not in told
        units = ("-u", "esp-gw", "-u", "esp-gw-guard")
        assert machine.ok("journalctl", "-b", "-q", "-o", "cat", "-p", "err", *units) == ""

    def test_nothing_left_in_the_clear_from_power_on_to_power_off(self, machine: Debian) -> None:
        """But for bound sockets once the shutdown stops nftables.service, which flushes."""
        machine.later()
        running = machine.sent()
        assert leaked(running) == []
        assert [packet for packet in running if packet.is_esp]
        shutdown = machine.power_off()[len(running) :]
        assert sent_to(shutdown, OPEN)
        assert sent_to(leaked(shutdown), BOUND) == leaked(shutdown)
