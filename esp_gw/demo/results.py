"""Measurements of the demo, and their presentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from esp_gw.model import NO_AES, Encapsulation

Row = tuple[str, str]


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo; CPU percentages are of one core, during the iperf3 runs."""

    engine: str
    aes: str
    mode: str
    encapsulation: str
    suite: str
    mtu: int
    seconds_to_first_packet: float
    rtt_us: float
    tcp_gbit_s: float
    tcp_reverse_gbit_s: float
    cpu_percent_a: float
    cpu_percent_b: float
    rss_mb: float
    esp_packets_on_wire: int
    cleartext_packets_on_wire: int
    cleartext_examples: tuple[str, ...]
    packets_out: int
    packets_in: int
    drops: dict[str, int]

    FIRST: ClassVar[str] = "start to first packet"

    @property
    def fault(self) -> str | None:
        """The fault; None if traffic passed both ways and the tap saw nothing but ESP."""
        if self.cleartext_packets_on_wire:
            return "CLEARTEXT WAS ON THE WIRE"
        moved = min(self.tcp_gbit_s, self.tcp_reverse_gbit_s, self.rtt_us) > 0
        return None if moved and self.esp_packets_on_wire else "no traffic passed"

    def of_keys(self) -> Sequence[Row]:
        """Return the rows on where the keys come from."""
        return ()

    def of_losses(self) -> Sequence[Row]:
        """Return the rows on what got lost, beside the drops."""
        return ()

    def rows(self, seconds: int) -> Sequence[Row]:
        """Return the rows of the table; each iperf3 run took `seconds`."""
        aes = "no AES instructions" if self.aes == NO_AES else f"AES by {self.aes}"
        how = "ESP in UDP" if self.encapsulation == Encapsulation.UDP else "ESP, protocol 50"
        drops = ", ".join(f"{count} {reason}" for reason, count in self.drops.items())
        cpu = f"{self.cpu_percent_a:.0f} % and {self.cpu_percent_b:.0f} %"
        return (
            ("engine", f"{self.engine}, {aes}"),
            ("tunnel", f"{self.mode} mode, {how}, {self.suite}, MTU {self.mtu}"),
            *self.of_keys(),
            (self.FIRST, f"{self.seconds_to_first_packet:.2f} s"),
            ("round trip", f"{self.rtt_us:.0f} us"),
            (f"TCP, {seconds} s", _rate(self.tcp_gbit_s)),
            (f"TCP reverse, {seconds} s", _rate(self.tcp_reverse_gbit_s)),
            ("CPU of the gateways", cpu),
            ("memory of a gateway", f"{self.rss_mb:.0f} MB"),
            ("inner packets", f"{self.packets_out} sent, {self.packets_in} received"),
            ("dropped", drops or "none"),
            *self.of_losses(),
            ("ESP packets on the wire", str(self.esp_packets_on_wire)),
            ("cleartext on the wire", str(self.cleartext_packets_on_wire)),
            *(("cleartext, from the IP header on", example) for example in self.cleartext_examples),
            ("verdict", self.fault or "only ESP was on the wire"),
        )


def print_table(rows: Sequence[Row]) -> None:
    """Print rows of a name and a value."""
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows))


def _rate(gbit_s: float) -> str:
    return f"{gbit_s:.2f} Gbit/s" if gbit_s >= 0.1 else f"{gbit_s * 1000:.2f} Mbit/s"
