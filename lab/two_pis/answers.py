"""Parsers of the machines' answers, sans-IO: descriptions, tunnels, iperf3's reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from esp_gw.errors import LabError

DESCRIBE = """
echo "$(cat /etc/machine-id) $(readlink /proc/self/ns/net)"
command -v iperf3 || echo; ip -json address || echo '[]'
"""
"""Prints a line each: machine id with network namespace, path of iperf3, addresses as JSON."""
TUNNELS = "esp-gw tunnel list --json || sudo -n esp-gw tunnel list --json"
READ = """
model=$(tr -d '\\0' < /proc/device-tree/model) && echo "model $model"
for file in /sys/class/thermal/thermal_zone*/temp; do echo "temperature $(cat "$file")"; done
for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq; do
    echo "clock $(cat "$file")"
done
if command -v vcgencmd > /dev/null; then vcgencmd get_throttled; fi
"""
"""Prints the readable parts of a board's state and omits the rest."""
_THROTTLED = {
    0: "under-voltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""The bits of `vcgencmd get_throttled`: now; 16 bits higher, since boot."""


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a machine: its id, the presence of iperf3, its global addresses."""

    machine_id: str
    has_iperf3: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A board's state at one time; None for a value that it doesn't report.

    The highest temperature in degrees Celsius, the highest clock in MHz, and the causes of
    throttling according to vcgencmd: now and since boot.
    """

    model: str | None = None
    temperature_c: float | None = None
    clock_mhz: int | None = None
    throttled: tuple[str, ...] | None = None
    throttled_since_start: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate at an iperf3 receiver in Mbit/s, and the percentage of datagrams lost (UDP)."""

    mbit_s: float
    lost_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One end of a tunnel, as reported by `esp-gw tunnel list --json`."""

    name: str
    mode: str
    local: str
    remote: str
    local_ts: frozenset[str]
    remote_ts: frozenset[str]
    packets_out: int

    def mirrors(self, other: Tunnel) -> bool:
        """True if `other` can be the other end. In tunnel mode, NAT may change outer addresses."""
        if self.mode != other.mode:
            return False
        if self.mode == "transport":
            return (self.local, self.remote) == (other.remote, other.local)
        return (self.local_ts, self.remote_ts) == (other.remote_ts, other.local_ts)


def parse_description(text: str, host: str) -> Description:
    """Parse the output of DESCRIBE. Raises LabError for anything else."""
    try:
        machine_id, iperf3, addresses = text.split("\n", 2)
        local = tuple(
            address["local"]
            for link in json.loads(addresses)
            for address in link["addr_info"]
            if address["scope"] == "global"
        )
    except (ValueError, LookupError, TypeError):
        raise LabError(
            "it doesn't report its id and addresses", where=host, hint="is it Linux with iproute2?"
        ) from None
    return Description(machine_id, bool(iperf3), local)


def parse_reading(text: str) -> Reading:
    """Parse the output of READ; malformed values are omitted."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.replace("throttled=", "throttled ").partition(" ")
        found.setdefault(name, []).append(value)
    temperatures = _integers(found.get("temperature", ()))
    clocks = _integers(found.get("clock", ()))
    bits = _integers(found.get("throttled", ()))
    return Reading(
        next(iter(found.get("model", ())), None),
        max(temperatures) / 1000 if temperatures else None,
        max(clocks) // 1000 if clocks else None,
        _throttling(bits[0]) if bits else None,
        _throttling(bits[0] >> 16) if bits else None,
    )


def _integers(values: Sequence[str]) -> list[int]:
    numbers = []
    for value in values:
        try:
            numbers.append(int(value, 0))
        except ValueError:
            continue
    return numbers


def _throttling(bits: int) -> tuple[str, ...]:
    return tuple(text for bit, text in _THROTTLED.items() if bits >> bit & 1)


def parse_rate(text: str, host: str) -> Rate:
    """Parse the report of `iperf3 --json`. Raises LabError if the run failed."""
    try:
        report: dict[str, Any] = json.loads(text)
        if "error" in report:
            raise LabError(f"iperf3: {report['error']}", where=host)
        end = report["end"]
        received = end.get("sum_received") or end["sum"]
        lost = end["sum"]["lost_percent"] if "sum" in end else None
        return Rate(received["bits_per_second"] / 1e6, lost)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise LabError("iperf3 gave no report", where=host) from None


def parse_tunnels(text: str, host: str) -> list[Tunnel]:
    """Parse the answer of `esp-gw tunnel list --json`. Raises LabError for anything else."""
    try:
        return [
            Tunnel(
                tunnel["name"],
                tunnel["mode"],
                tunnel["local"],
                tunnel["remote"],
                frozenset(tunnel["local_ts"]),
                frozenset(tunnel["remote_ts"]),
                tunnel["packets_out"],
            )
            for tunnel in json.loads(text)["tunnels"]
        ]
    except (ValueError, LookupError, TypeError):
        raise LabError("malformed answer of 'esp-gw tunnel list'", where=host) from None


def common_tunnel(
    a: Sequence[Tunnel], b: Sequence[Tunnel], hosts: tuple[str, str]
) -> tuple[Tunnel, Tunnel]:
    """Return the two ends of the tunnel between two machines.

    Prefers a tunnel whose outer addresses match as well. Raises LabError if there is no tunnel.
    """
    pairs = [(one, other) for one in a for other in b if one.mirrors(other)]
    if not pairs:
        raise LabError(
            f"there is no tunnel between {hosts[0]} and {hosts[1]}",
            hint="is one of them the wrong host? see 'esp-gw tunnel list' on both",
        )
    return max(pairs, key=lambda pair: (pair[0].local, pair[0].remote) == _outer(pair[1])[::-1])


def _outer(tunnel: Tunnel) -> tuple[str, str]:
    return tunnel.local, tunnel.remote


def inner_address(tunnel: Tunnel, description: Description, host: str) -> str:
    """Return a machine's source address for traffic through its tunnel.

    Raises LabError if it has none.
    """
    if tunnel.mode == "transport":
        return tunnel.local
    networks = [ip_network(prefix) for prefix in sorted(tunnel.local_ts)]
    for address in description.addresses:
        if any(ip_address(address) in network for network in networks):
            return str(ip_interface(address).ip)
    raise LabError(
        f"no address in {', '.join(sorted(tunnel.local_ts))}",
        where=host,
        hint="add one to an interface, or choose one with --inner",
    )
