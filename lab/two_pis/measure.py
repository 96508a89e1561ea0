"""The checks, then the measurement, between two machines."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from esp_gw.errors import LabError
from lab.two_pis import answers
from lab.two_pis.answers import Rate, Reading, Tunnel
from lab.two_pis.ssh import Host, stop

_MARGIN = 45
"""Seconds of grace for an iperf3 beyond its measurement, after which `timeout` ends it."""
_SERVER = """
exec 3<&0
timeout {limit} iperf3 -s -1 --forceflush {options} & server=$!
(read -r none <&3; kill $server) 2> /dev/null & watch=$!
wait $server; kill $watch 2> /dev/null
"""
"""One run of a server; it ends early on EOF of its input, when the connection is lost."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options: seconds of each run, iperf3's port, addresses of both machines.

    Addresses that are None are queried from esp-gw.
    """

    seconds: int
    port: int
    inner: tuple[str, str] | None = None
    outer: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One kind of traffic: its rate outside the tunnel (None: no such path) and through it."""

    protocol: str
    sender: str
    receiver: str
    without: Rate | None
    through: Rate


@dataclass(frozen=True, slots=True)
class Board:
    """One of the machines: its state before and after all tests."""

    host: str
    before: Reading
    after: Reading


@dataclass(frozen=True, slots=True)
class Report:
    """The whole measurement. `inner` and `outer` are the addresses of both machines."""

    seconds: int
    inner: tuple[str, str]
    outer: tuple[str, str] | None
    boards: tuple[Board, Board]
    tests: list[Comparison] = field(default_factory=list)


def measure(names: tuple[str, str], options: Options, say: Callable[[str], None]) -> Report:
    """Measure between the hosts `names`; leaves nothing running. Raises LabError."""
    with (
        tempfile.TemporaryDirectory(prefix="esp-gw-two-pis-") as folder,
        contextlib.ExitStack() as stack,
    ):
        hosts = []
        for name in names:
            say(f"connecting to {name}")
            host = Host(name, Path(folder))
            stack.callback(host.close)
            hosts.append(host)
        return _measure((hosts[0], hosts[1]), options, say)


def _measure(hosts: tuple[Host, Host], options: Options, say: Callable[[str], None]) -> Report:
    a, b = hosts
    described = _describe(hosts)
    tunnel: Tunnel | None = None
    inner, outer = options.inner, options.outer
    if inner is None or outer is None:
        ends = answers.common_tunnel(_tunnels(a), _tunnels(b), (a.name, b.name))
        tunnel = ends[0]
        if inner is None:
            found = [
                answers.inner_address(end, description, host.name)
                for end, description, host in zip(ends, described, hosts, strict=True)
            ]
            inner = (found[0], found[1])
        if outer is None and tunnel.mode != "transport":
            outer = (tunnel.local, tunnel.remote)
    for host, description, address in zip(hosts, described, inner, strict=True):
        if address not in description.addresses:
            raise LabError(f"no interface has the address {address}", where=host.name)
    say(f"the tunnel from {inner[0]} to {inner[1]}")
    _check_reachable(a, inner)
    before = [_read(host) for host in hosts]
    tests = []
    for sender, receiver in ((a, b), (b, a)):
        back = ["-R"] if sender is b else []
        without: Rate | None = None
        say(f"TCP from {sender.name} to {receiver.name}")
        if outer is not None:
            without = _iperf(hosts, (None, outer[1]), back, options)
        through = _iperf(hosts, inner, back, options)
        tests.append(Comparison("TCP", sender.name, receiver.name, without, through))
        say(f"UDP from {sender.name} to {receiver.name}")
        if outer is not None and without is not None:
            without = _iperf(hosts, (None, outer[1]), [*back, *_udp(without)], options)
        through = _iperf(hosts, inner, [*back, *_udp(through)], options)
        tests.append(Comparison("UDP", sender.name, receiver.name, without, through))
    if tunnel is not None:
        now = {end.name: end for end in _tunnels(a)}.get(tunnel.name)
        if now is not None and now.packets_out <= tunnel.packets_out:
            raise LabError(
                f"the tunnel {tunnel.name} carried none of the traffic",
                where=a.name,
                hint=f"run 'ip route get {inner[1]}' there to see its route",
            )
    boards = [
        Board(host.name, reading, _read(host)) for host, reading in zip(hosts, before, strict=True)
    ]
    return Report(options.seconds, inner, outer, (boards[0], boards[1]), tests)


def _describe(hosts: tuple[Host, Host]) -> list[answers.Description]:
    described = []
    for host in hosts:
        found = answers.parse_description(host.run(answers.DESCRIBE).stdout, host.name)
        if not found.has_iperf3:
            hint = "install it there: 'sudo apt-get install iperf3'"
            raise LabError("iperf3 is not installed", where=host.name, hint=hint)
        described.append(found)
    if described[0].machine_id == described[1].machine_id:
        raise LabError(f"{hosts[0].name} and {hosts[1].name} are the same machine")
    return described


def _tunnels(host: Host) -> list[Tunnel]:
    result = host.run(answers.TUNNELS)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it failed"]
        raise LabError(
            f"esp-gw can't list its tunnels: {lines[0].removeprefix('esp-gw: error: ')}",
            where=host.name,
            hint="or give the addresses with --inner and --outer",
        )
    return answers.parse_tunnels(result.stdout, host.name)


def _check_reachable(a: Host, inner: tuple[str, str]) -> None:
    source, target = map(shlex.quote, inner)
    # Ends at the first reply, or after ten seconds.
    if a.run(f"ping -n -q -c 1 -w 10 -I {source} {target}").returncode:
        raise LabError(
            f"the tunnel is down: {inner[1]} does not answer {inner[0]}",
            where=a.name,
            hint="see 'esp-gw status' and 'esp-gw stats' on both",
        )


def _read(host: Host) -> Reading:
    return answers.parse_reading(host.run(answers.READ).stdout)


def _iperf(
    hosts: tuple[Host, Host],
    addresses: tuple[str | None, str],
    words: list[str],
    options: Options,
) -> Rate:
    """Run iperf3 between a's address (None: chosen by routing) and b's. Raises LabError.

    `words` are further arguments of the client.
    """
    a, b = hosts
    own, target = addresses
    limit = options.seconds + _MARGIN
    bound = "" if own is None else f"-B {shlex.quote(target)}"
    server = b.start(_SERVER.format(limit=limit, options=f"-p {options.port} {bound}"))
    try:
        _wait_listening(server.stdout, b.name)
        command = ["timeout", limit, "iperf3", "--json", "--connect-timeout", 10000]
        command += ["-c", target, "-p", options.port, "-t", options.seconds, *words]
        command += ["-B", own] if own is not None else []
        client = a.run(shlex.join(map(str, command)), limit + _MARGIN)
        return answers.parse_rate(client.stdout, a.name)
    finally:
        stop(server)


def _udp(tcp: Rate) -> list[str]:
    # TCP's rate is what the path can carry; a higher one would only measure drops.
    return ["-u", "-b", str(max(100_000, int(tcp.mbit_s * 1e6)))]


def _wait_listening(output: IO[str] | None, host: str) -> None:
    lines = []
    for line in output or ():
        if "listening" in line:
            return
        lines.append(line.strip())
    errors = [line.partition("error - ")[2] for line in lines if "error - " in line]
    raise LabError(f"iperf3 can't listen: {[*errors, *lines, 'it ended'][0]}", where=host)
