"""`esp-gw tunnel ping`: loss, round-trip time and path MTU through one tunnel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

import click

from esp_gw.cli import output
from esp_gw.cli.explain import EXPLAIN_TIMEOUT
from esp_gw.cli.options import Daemon
from esp_gw.errors import EspGwError
from esp_gw.model import IPAddress, Mode
from esp_gw.network import dumps
from esp_gw.network.echo import Echo, measure_path, overhead
from esp_gw.network.messages import MessageSocket
from esp_gw.network.route_lookup import way_to
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6, MIN_IPV6_MTU

SIZE = 84
"""Bytes of a request that measures loss, IP header included: as ping's in IPv4."""
WAIT = 1.0
"""Seconds for an answer."""
INTERVAL = 0.2
"""Seconds from one request to the next, at least."""
_LEAST = {4: 68, 6: MIN_IPV6_MTU}
"""The smallest MTU of a link (RFC 791 3.2, RFC 8200 5)."""
_STEPS = 24
"""Packet sizes that are tried at once."""
_PROTOCOL = {4: IPPROTO_ICMP, 6: IPPROTO_ICMPV6}


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of some requests; times are in seconds, sizes in bytes of inner packets.

    `limit` is the largest packet that the gateway sends, `path_mtu` the largest that was answered,
    0 if none was, None if it was not measured.
    """

    source: IPAddress
    target: IPAddress
    sent: int
    times: Sequence[float]
    limit: int
    path_mtu: int | None


def ping(
    daemon: Daemon, entry: Mapping[str, Any], address: IPAddress | None, count: int, *, quiet: bool
) -> Result:
    """Ping an address behind the peer of a tunnel, by default the first one; tell of each answer.

    `entry` is the tunnel as listed. Raises EspGwError if it would not carry the packets.
    """
    target = address or _far(entry)
    source = _near(entry, target)
    limit = _way(daemon, entry, source, target)
    if not quiet:
        peer = output.remote(entry)
        output.print_text(f"ping by {entry['name']}: {source} -> {target}, through {peer}")
    with contextlib.closing(Echo(source, target)) as echo:
        size = max(SIZE, overhead(target.version))
        answers: list[float | None] = []
        path_mtu: int | None = None
        try:
            for each in _times(echo, size, count, quiet=quiet):
                answers.append(each)  # noqa: PERF402 - those before an interruption count
            if any(each is not None for each in answers):
                path_mtu = _path_mtu(echo, target.version, limit)
        except KeyboardInterrupt:
            # As with ping it is enough, and what was measured is told.
            if not answers:
                raise
        times = [each for each in answers if each is not None]
        refused = "" if times else echo.refused
    if refused and not quiet:
        output.print_text(f"the last answer was an error: {refused}")
    return Result(source, target, len(answers), times, limit, path_mtu)


def _far(entry: Mapping[str, Any]) -> IPAddress:
    """Return the first address behind the peer; in transport mode the peer's own."""
    prefixes = [ip_network(each) for each in entry["remote_ts"]]
    narrow = [each for each in prefixes if each.prefixlen]
    if not narrow:
        raise EspGwError(
            f"{entry['name']} carries everything, so no address is known to be behind its peer",
            hint=f"name one: 'esp-gw tunnel ping {entry['name']} ADDRESS'",
        )
    first = narrow[0]
    alone = first.num_addresses == 1 or entry["mode"] == Mode.TRANSPORT
    return first.network_address + (0 if alone else 1)


def _near(entry: Mapping[str, Any], target: IPAddress) -> IPAddress:
    """Return the address of this host that the tunnel carries, or what the kernel would choose."""
    ours = [ip_network(each) for each in entry["local_ts"]]
    with contextlib.closing(MessageSocket()) as messages:
        chosen = way_to(messages, target).source
        there = [each.address for each in dumps.addresses(messages)]
    for each in (*([] if chosen is None else [chosen]), *sorted(there, key=int)):
        if each.version == target.version and any(each in prefix for prefix in ours):
            return each
    raise EspGwError(
        f"this host has no address in {output.joined(entry['local_ts'])}, of which "
        f"{entry['name']} carries packets to {target}",
        hint="give it one: 'address' in 'gateway'",
    )


def _way(daemon: Daemon, entry: Mapping[str, Any], source: IPAddress, target: IPAddress) -> int:
    """Return the largest packet for an address. Raises EspGwError if it goes another way."""
    name = entry["name"]
    parameters = {
        "source": str(source),
        "destination": str(target),
        "protocol": _PROTOCOL[target.version],
    }
    reply = replace(daemon, timeout=EXPLAIN_TIMEOUT).call("Explain", **parameters)
    see = f"see 'esp-gw explain {source} {target}'"
    taken = reply["tunnel"] or reply["policy"]
    stop = next((each for each in reply["steps"] if each["state"] == "stop"), None)
    # A peer that is silent or fails is what a ping is for.
    if stop is not None and stop["what"] != "peer":
        raise EspGwError(f"{stop['what']}: {stop['found']}", hint=stop["todo"] or see)
    if reply["verdict"] == "clear":
        raise EspGwError(f"{target} is not reached by {name}, but in the clear", hint=see)
    if taken != name and not set(reply["sas"]) & set(entry["sas"]):
        raise EspGwError(f"{target} is reached by {taken}, not by {name}", hint=see)
    return int(reply["mtu"] or daemon.call("GetStatus")["mtu"])


def _times(echo: Echo, size: int, count: int, *, quiet: bool) -> Iterator[float | None]:
    """Yield the round-trip time of each request, None for one without an answer."""
    for number in range(1, count + 1):
        began = time.monotonic()
        sent = echo.send(size)
        found = [each.rtt for each in echo.answers(began + WAIT) if each.number == sent]
        echo.forget()
        if not quiet:
            text = f"{1000 * found[0]:.3f} ms" if found else "no answer"
            click.echo(f"{number}: {text}")
        yield found[0] if found else None
        if number < count:
            time.sleep(max(began + INTERVAL - time.monotonic(), 0))


def _path_mtu(echo: Echo, version: int, limit: int) -> int:
    """Return the largest packet of at most `limit` bytes that is answered, 0 if none is.

    The usual one is the limit itself. Otherwise some sizes at once, then some between two of them.
    """
    known = measure_path(echo, [limit], WAIT)
    if known:
        return known
    low, high = min(_LEAST[version], limit), limit
    while high - low > 1:
        step = max((high - low) // _STEPS, 1)
        found = measure_path(echo, range(low, high, step), WAIT)
        if not found:
            return known
        known, low, high = found, found, min(found + step, high)
    return known


def as_json(name: str, result: Result) -> dict[str, object]:
    """Return a result for a script: times in milliseconds."""
    times = [round(1000 * each, 3) for each in result.times]
    return {
        "tunnel": name,
        "source": str(result.source),
        "destination": str(result.target),
        "sent": result.sent,
        "answered": len(times),
        "rtt_ms": {"min": min(times), "mean": round(_mean(times), 3), "max": max(times)}
        if times
        else None,
        "mtu": result.limit,
        "path_mtu": result.path_mtu or None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def print_result(result: Result) -> None:
    """Print what came back, and the path MTU."""
    lost = result.sent - len(result.times)
    text = (
        f"{result.sent} sent, {len(result.times)} answered, {100 * lost / result.sent:.0f} % lost"
    )
    if result.times:
        least, mean, most = (
            f"{1000 * each:.3f}"
            for each in (min(result.times), _mean(result.times), max(result.times))
        )
        output.print_text(f"{text}, round trip {least}/{mean}/{most} ms (min/mean/max)")
        _print_mtu(result)
    else:
        output.print_text(text)


def _print_mtu(result: Result) -> None:
    if result.path_mtu == result.limit:
        output.print_text(f"path mtu {result.path_mtu} bytes: all that this gateway sends")
    elif result.path_mtu:
        output.print_text(
            f"path mtu {result.path_mtu} bytes, of {result.limit} that this gateway sends: "
            f"something on the way drops larger ones; write 'mtu: {result.path_mtu}' in 'gateway', "
            "then run 'esp-gw reload'"
        )
    elif result.path_mtu is not None:
        output.print_text(
            "path mtu unknown: no packet was answered that is as large as every link takes"
        )
