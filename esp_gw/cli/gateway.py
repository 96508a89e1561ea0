"""`esp-gw run`, `status`, `stats`, `reload`: the gateway as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from esp_gw.cli import output
from esp_gw.cli.children import print_children
from esp_gw.cli.options import (
    CONFIG,
    Daemon,
    config_option,
    json_option,
    log_level_option,
)
from esp_gw.errors import ControlError, EspGwError, printable
from esp_gw.model import NO_AES, NORMAL, TunnelState

RELOAD_TIMEOUT = 80.0
"""Seconds for a reload of thousands of tunnels on a slow disk; systemd ends it after 90."""


@click.command()
@config_option
@log_level_option
@click.option("--release", is_flag=True, help="Open the protected prefixes when told to stop.")
def run(config: Path, log_level: str, release: bool) -> int:
    """Run the gateway in the foreground, as systemd does.

    Protected prefixes stay closed when it ends; 'esp-gw guard down' opens them.
    """
    from esp_gw.daemon import main as daemon  # noqa: PLC0415 - the daemon's libraries are slow to import

    return (daemon.run_and_release if release else daemon.run)(config, log_level)


@click.command()
@click.option("--watch", is_flag=True, help="Go on showing it, until q or Ctrl-C.")
@json_option
@click.pass_obj
def status(daemon: Daemon, watch: bool, as_json: bool) -> int:
    """Show the state of the running gateway, with warnings.

    The exit status is 0 if all is well, 1 with a warning, 3 if no gateway runs. Into a pipe --watch
    writes a line for each change.
    """
    if watch:
        from esp_gw.cli.watch import watch as follow  # noqa: PLC0415 - needed by live displays alone

        follow(daemon, _show, as_json=as_json)
        return 0
    reply = daemon.call("GetStatus")
    if as_json:
        output.print_json(reply)
    else:
        _show(reply)
    return int(not _is_well(reply))


def _is_well(reply: Mapping[str, Any]) -> bool:
    states = reply["states"]
    return (
        not reply["warnings"] and not states[TunnelState.DOWN] and not states[TunnelState.FAILING]
    )


def _show(reply: Mapping[str, Any]) -> None:
    states = reply["states"]
    output.print_block(
        "esp-gw",
        reply["version"],
        {
            "running": f"for {output.span(reply['uptime_s'])}, pid {reply['pid']}",
            "engine": _engine(reply),
            "latency": _latency(reply["latency"]),
            "cryptography": _cryptography(reply),
            "offload": output.joined(
                name for name, entry in reply["offload"].items() if entry["in_use"]
            ),
            "AF_ALG": output.joined(_af_alg(reply["af_alg"])),
            "lanes": _lanes(reply),
            "not offloaded": output.joined(_faults(reply["offload"])),
            "interface": f"{reply['interface']}, mtu {reply['mtu']}",
            "config": str(reply["config"]),
            "ledger": str(reply["ledger"]),
            "tunnels": str(reply["tunnels"]),
            "states": output.joined(f"{count} {name}" for name, count in states.items() if count),
            "sas": str(reply["sas"]),
            "policies": str(reply["policies"]),
        },
    )
    # A gateway of an earlier version has none.
    print_children(reply.get("children", []))
    for warning in reply["warnings"]:
        output.print_text(f"warning: {warning}", indent="  ", hanging="      ")


def _engine(reply: Mapping[str, Any]) -> str:
    words = [str(reply["engine"]), output.counted(reply["workers"], "worker")]
    if reply["pinned"]:
        words.append("pinned")
    return ", ".join(words)


def _lanes(reply: Mapping[str, Any]) -> str:
    """Return how the lanes of tunnels with several SAs reach the workers, empty without lanes."""
    lanes = reply["lanes"]
    laned, limit, refused = lanes["laned"], lanes["limit"], lanes["refused"]
    if not laned:
        return ""
    if not limit or reply["workers"] == 1:
        return "one worker for all"
    if laned > limit:
        spis = f"{laned} inbound SPIs, those of replaced SAs included"
        return f"not steered: {spis}; at most {limit} can be"
    if refused is not None:
        return f"not steered: the kernel refused the list of SPIs ({refused})"
    if not lanes["steered"]:
        return "not steered"
    words = [f"{lanes['listed']} inbound SPIs steered"]
    if lanes["priority"] is not None:
        words.append(f"nice {lanes['priority']} for lane 0")
    if lanes["priority_refused"] is not None:
        words.append(
            "no priority for lane 0: LimitNICE of the unit, or RLIMIT_NICE, allows no nice of -11"
        )
    return output.joined(words)


def _latency(latency: Mapping[str, Any]) -> str:
    """Return a phrase on low latency with its cost, or nothing for the default."""
    if latency["setting"] == NORMAL:
        return ""
    if latency["why"]:
        return f"{latency['setting']}, without effect"
    now = "they do now" if latency["held"] else "not now"
    return (
        f"{latency['setting']}, at the cost of power: processors stay out of idle states while "
        f"there is traffic and {latency['rest_ms']} ms after it ({now})"
    )


def _cryptography(reply: Mapping[str, Any]) -> str:
    """Return the libraries with their suites, then the processor's AES instructions."""
    suites: dict[str, list[str]] = {}
    for suite, provider in sorted(reply["provider"].items()):
        suites.setdefault(provider, []).append(suite)
    libraries = [f"{provider} ({', '.join(names)})" for provider, names in suites.items()]
    aes = "no AES instructions" if reply["aes"] == NO_AES else f"AES by {reply['aes']}"
    return output.joined([*libraries, aes])


def _af_alg(statuses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a phrase per use of AF_ALG and reason, with the suites it holds for."""
    suites: dict[tuple[bool, str], list[str]] = {}
    for suite, status in statuses.items():
        suites.setdefault((status["in_use"], str(status["why"])), []).append(suite)
    return [
        f"{'used' if in_use else 'not used'} for {' '.join(names)} ({why})"
        for (in_use, why), names in suites.items()
    ]


def _faults(offload: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a phrase for each reason, with the offloads that it keeps from being used in full."""
    reasons: dict[str, list[str]] = {}
    for name, entry in offload.items():
        if entry["why"]:
            reasons.setdefault(str(entry["why"]), []).append(name)
    return [f"{' '.join(names)} ({why})" for why, names in reasons.items()]


@click.command()
@json_option
@click.pass_obj
def stats(daemon: Daemon, as_json: bool) -> None:
    """Show the counters since the start."""
    reply = daemon.call("GetStats")
    if as_json:
        output.print_json(reply)
        return
    bulk = reply["bulk_on_lane0"]
    output.print_block(
        "traffic",
        "inner packets",
        {
            "out": f"{reply['packets_out']} packets, {output.size(reply['bytes_out'])}",
            "in": f"{reply['packets_in']} packets, {output.size(reply['bytes_in'])}",
            "keepalives": f"{reply['keepalives_out']} out, {reply['keepalives_in']} in",
            "bulk on lane 0": output.counted(bulk, "packet") if bulk else "",
        },
    )
    if reply["lanes"]:
        output.print_block("flows", "by lane", {})
    for name, lanes in reply["lanes"].items():
        output.print_listed(name, output.lanes(lanes), indent="  ")
    dropped = {reason: str(count) for reason, count in reply["drops"].items() if count}
    if dropped:
        output.print_block("drops", f"{sum(map(int, dropped.values()))} packets", dropped)


@click.command()
@click.option(
    "--config",
    type=CONFIG,
    help="The configuration of the daemon; it names the control socket.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@json_option
@click.pass_obj
def reload(daemon: Daemon, config: Path | None, dry_run: bool, as_json: bool) -> None:
    """Reload the configuration, applying only what has changed.

    What would end the ssh session of the caller is refused.
    """
    if dry_run:
        tell_difference(daemon, config, as_json=as_json)
        return
    daemon = replace(daemon, timeout=RELOAD_TIMEOUT)
    _keep_caller(daemon, config)
    reply = daemon.call("Reload") if config is None else _ask_reader(daemon, config, "Reload")
    if as_json:
        output.print_json(reply)
        return
    for change in reply["changes"] or ["nothing has changed"]:
        click.echo(printable(str(change)))
    for warning in reply.get("warnings", []):
        click.echo(printable(f"warning: {warning}"), err=True)


def tell_difference(daemon: Daemon, config: Path | None, *, as_json: bool) -> None:
    """Print what a reload would change, in the words of the file."""
    daemon = replace(daemon, timeout=RELOAD_TIMEOUT)
    if config is None:
        reply = daemon.call("CheckReload")
    else:
        reply = _ask_reader(daemon, config, "CheckReload")
    if as_json:
        output.print_json(reply)
        return
    for change in reply["changes"] or ["nothing would change"]:
        output.print_text(change)


def _keep_caller(daemon: Daemon, config: Path | None) -> None:
    from esp_gw.cli.login import find_login  # noqa: PLC0415 - imports netlink, which is slow

    if find_login() is None:
        return
    from esp_gw.cli.here import keep_caller  # noqa: PLC0415 - likewise

    keep_caller(config or Path(daemon.call("GetStatus")["config"]))


def _ask_reader(daemon: Daemon, config: Path, method: str) -> dict[str, Any]:
    """Call a method of the gateway that reads `config`, and no other one."""
    from esp_gw.config.load import (  # noqa: PLC0415 - pydantic is slow to import
        load_state_dir,
        readable_control_socket,
    )

    daemon = daemon.of(readable_control_socket(config))
    try:
        return daemon.call(method, config=str(config.absolute()))
    except ControlError:
        raise
    except EspGwError:
        # A file too broken to name its socket is the fault, not that nobody answers elsewhere.
        load_state_dir(config)
        raise
