"""Read-only diagnosis of this machine: prerequisites of esp_gw, and problems.

The check for AF_ALG makes the kernel load its module if it has one.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from esp_gw.cli.finding import Finding, State
from esp_gw.cli.ike_checks import closed_for_ike, ike_findings, prefixes_for_ike
from esp_gw.cli.machine_checks import machine_findings
from esp_gw.cli.output import counted
from esp_gw.cli.unit import UNIT
from esp_gw.cli.viewpoint import Viewpoint, viewpoint
from esp_gw.config.load import load_config, readable_control_socket
from esp_gw.control.client import call
from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.crypto.measure import Sealer
from esp_gw.crypto.probe import choose, find_faults
from esp_gw.crypto.processor import aes_path
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.engine.choose import is_native
from esp_gw.engine.refusals import LATENCY_DEVICE, TUN_DEVICE, latency_refused, tun_not_opened
from esp_gw.errors import ConfigError, ControlError, EspGwError, LedgerError, NetworkError
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger
from esp_gw.model import AF_ALG_AUTO, AF_ALG_OFF, AF_ALG_ON, DEFAULT_SUITE, LOW, NO_AES, OFF
from esp_gw.network.forward import forward_warnings
from esp_gw.network.nft import firewall_fault, list_ruleset
from esp_gw.network.sysctl import network_warnings

UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
GUARD_UNIT = "esp-gw-guard.service"
PROC_STATUS = Path("/proc/self/status")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
# Socket options (udp(7)) with the first kernel that supports them.
_UDP_OFFLOADS = (("UDP GSO", 103, "4.18"), ("UDP GRO", 104, "5.0"))


def examine(config: Path, control_socket: Path) -> list[Finding]:
    """Run all checks, whether a gateway is running or not.

    `control_socket` is used if there is no configuration. Configuration and ledger are looked at as
    the service does.
    """
    with viewpoint(config) as view:
        desired, configured = _configuration(config)
        if view.identity is not None:
            configured = _seen(view, lambda: _configuration(config)[1])
        wanted = AF_ALG_AUTO if desired is None else desired.settings.af_alg
        if os.path.lexists(config):
            control_socket = readable_control_socket(config)
        running, daemon, process = _daemon(control_socket)
        useful, af_alg = _af_alg(wanted, desired)
        findings = [
            _kernel(),
            _tun(),
            _udp_offloads(),
            _capabilities(),
            _aes(),
            _engine("auto" if desired is None else desired.settings.engine),
            af_alg,
            Finding(State.OK, "looked", view.who),
            *(Finding(State.FAULT, "unit", str(fault)) for fault in view.faults),
            configured,
        ]
        if desired is not None:
            findings += _network(desired)
            findings += _latency(view, desired.settings)
            findings.append(_firewall(desired.settings))
            path = Path(desired.settings.state_dir) / LEDGER_NAME
            findings.append(_seen(view, lambda: _ledger(path, running)))
            if not running:
                prefixes = view.look(lambda: prefixes_for_ike(path.parent))
                findings += closed_for_ike(prefixes)
        findings += [_unit(wanted, useful), _guard_unit(), daemon]
        findings += machine_findings(desired, process)
        fwmark = None if desired is None else desired.settings.fwmark
        return [*findings, *ike_findings(control_socket, fwmark)]


def _seen(view: Viewpoint, check: Callable[[], Finding]) -> Finding:
    """Return a finding as the service would make it."""
    found = view.look(lambda: asdict(check()))
    return Finding(**{**found, "state": State(found["state"])})


def _kernel() -> Finding:
    system = platform.uname()
    return Finding(State.OK, "kernel", f"{system.system} {system.release}, {system.machine}")


def _tun() -> Finding:
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        refused = tun_not_opened(TUN_DEVICE, error)
        return Finding(State.FAULT, "tun", f"{TUN_DEVICE}: {error.strerror}", refused.hint or "")
    return Finding(State.OK, "tun", TUN_DEVICE)


def _udp_offloads() -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        missing = [
            f"{name} (Linux {since})"
            for name, option, since in _UDP_OFFLOADS
            if not _has_option(sock, option)
        ]
    names = " and ".join(name for name, _, _ in _UDP_OFFLOADS)
    if missing:
        found = f"this kernel has no {', no '.join(missing)}: the native engine is slower"
        return Finding(State.WARNING, "udp offload", found)
    return Finding(State.OK, "udp offload", names)


def _has_option(sock: socket.socket, option: int) -> bool:
    try:
        sock.setsockopt(socket.IPPROTO_UDP, option, 0)
    except OSError:
        return False
    return True


def _capabilities() -> Finding:
    lines = PROC_STATUS.read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        found = f"this command has no {' and no '.join(missing)}; the service has its own"
        return Finding(State.WARNING, "capabilities", found, "use sudo to see what root sees")
    return Finding(State.OK, "capabilities", ", ".join(_CAPABILITIES))


def _aes() -> Finding:
    path = aes_path()
    if path == NO_AES:
        found = "the processor has no AES instructions"
        return Finding(State.WARNING, "aes", found, "see 'esp-gw bench crypto' for the suite")
    return Finding(State.OK, "aes", path)


def _engine(wanted: str) -> Finding:
    try:
        if not is_native(wanted):
            why = "as configured" if wanted == "python" else "the native one is not installed"
            state = State.OK if wanted == "python" else State.WARNING
            todo = "" if wanted == "python" else "'pip install esp-gw[native]' is faster"
            return Finding(state, "engine", f"python, {why}", todo)
        import esp_gw_core  # noqa: PLC0415 - may be missing, or built for another machine
    except EspGwError as error:
        return Finding(State.FAULT, "engine", error.what, error.hint or "")
    except ImportError as error:
        found = f"the native one can't be loaded: {error}"
        return Finding(State.FAULT, "engine", found, "install it again, or set 'engine: python'")
    return Finding(State.OK, "engine", f"native, {esp_gw_core.__version__}")


def _af_alg(wanted: str, desired: Desired | None) -> tuple[bool, Finding]:
    """Return True if AF_ALG would be used here, and the finding; `_unit` checks the service."""
    if wanted == AF_ALG_OFF:
        return False, Finding(State.OK, "af_alg", "switched off")
    tunnels = () if desired is None else desired.tunnels
    suites = sorted({tunnel.suite.name for tunnel in tunnels}) or [DEFAULT_SUITE.name]
    if wanted == AF_ALG_ON:
        faults = find_faults()
        lacking = [suite for suite in suites if suite in faults]
        if lacking:
            found = f"not available for {' '.join(lacking)}: {faults[lacking[0]]}"
            return False, Finding(State.FAULT, "af_alg", found, "set 'crypto.offload: auto'")
        return True, Finding(State.OK, "af_alg", "switched on")
    settings = GatewaySettings() if desired is None else desired.settings
    statuses = choose(AF_ALG_AUTO, _sealer(settings))
    found = "; ".join(dict.fromkeys(_described(statuses[suite]) for suite in suites))
    useful = any(statuses[suite].in_use for suite in suites)
    return useful, Finding(State.OK, "af_alg", found)


def _sealer(settings: GatewaySettings) -> Sealer:
    try:
        return Sealer(is_native(settings.engine), settings.provider)
    except EspGwError:  # reported by _engine
        return Sealer(native=False)


def _described(status: AfAlgStatus) -> str:
    return f"{'used' if status.in_use else 'not used'}: {status.why}"


def _configuration(config: Path) -> tuple[Desired | None, Finding]:
    todo = "run 'esp-gw init', or name another one with --config"
    if not os.path.lexists(config):
        return None, Finding(State.WARNING, "config", f"{config}: does not exist", todo)
    try:
        desired = load_config(config)
    except ConfigError as error:
        if _is_empty(config):
            return None, Finding(State.WARNING, "config", error.summary, todo)
        todo = f"run 'sudo esp-gw config check {config}'"
        return None, Finding(State.FAULT, "config", error.summary, todo)
    tunnels = counted(len(desired.tunnels), "tunnel")
    found = f"{config}: {tunnels}, {counted(len(desired.sas), 'SA')}"
    if desired.warnings:
        text = f"{found}, {counted(len(desired.warnings), 'warning')}"
        return desired, Finding(
            State.WARNING, "config", text, f"run 'esp-gw config check {config}'"
        )
    return desired, Finding(State.OK, "config", found)


def _is_empty(config: Path) -> bool:
    """True for a folder without a file, as an installation leaves it."""
    try:
        return not any(config.iterdir())
    except OSError:
        return False


def _network(desired: Desired) -> Iterator[Finding]:
    interface = desired.settings.interface
    try:
        ruleset = list_ruleset()
    except NetworkError:  # reported by _firewall, or by _capabilities
        ruleset = []
    for text in (
        *network_warnings(desired, interface),
        *forward_warnings(desired, ruleset, interface),
    ):
        found, _, todo = text.partition("; ")
        yield Finding(State.WARNING, "network", found, todo)


def _latency(view: Viewpoint, settings: GatewaySettings) -> Iterator[Finding]:
    if settings.latency == LOW:
        yield _seen(view, _latency_device)


def _latency_device() -> Finding:
    try:
        os.close(os.open(LATENCY_DEVICE, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        found, _, todo = latency_refused(error.errno or 0).partition("; ")
        return Finding(State.WARNING, "latency", f"low has no effect: {found}", todo)
    return Finding(State.OK, "latency", f"low, by {LATENCY_DEVICE}")


def _firewall(settings: GatewaySettings) -> Finding:
    if settings.firewall == OFF:
        return Finding(State.OK, "firewall", "switched off")
    fault = firewall_fault()
    if fault is None:
        return Finding(State.OK, "firewall", "nftables")
    found, _, todo = fault.partition("; ")
    return Finding(State.WARNING, "firewall", f"routes alone are closed: {found}", todo)


def _ledger(path: Path, running: bool) -> Finding:
    if running:
        return Finding(State.OK, "ledger", f"{path}, in use by the running gateway")
    try:
        machine = machine_identity(path.parent)
        ledger = Ledger.open(path, machine)
        keys = len(ledger.entries())
        ledger.close()
    except LedgerError as error:
        return Finding(State.FAULT, "ledger", f"{path}: {error.what}", error.hint or "")
    known = f"{path}, {counted(keys, 'key')}; bound to the {' and '.join(machine.names())}"
    hidden = ", but not to the product UUID, which the gateway may not read"
    return Finding(State.OK, "ledger", known + hidden * machine.hides_uuid)


def _unit(wanted: str, useful: bool) -> Finding:
    installed = [folder / UNIT for folder in UNIT_FOLDERS if (folder / UNIT).exists()]
    if not installed:
        return Finding(State.WARNING, "systemd", "no unit is installed", "run 'scripts/install'")
    path, *_ = installed
    drop_ins = [entry for folder in UNIT_FOLDERS for entry in (folder / f"{UNIT}.d").glob("*.conf")]
    allowed = any("AF_ALG" in file.read_text(errors="replace") for file in (path, *drop_ins))
    if not allowed and (useful or wanted == AF_ALG_ON):
        state = State.FAULT if wanted == AF_ALG_ON else State.WARNING
        why = "crypto.offload is on" if wanted == AF_ALG_ON else "it is faster here"
        found = f"{path} does not allow AF_ALG, and {why}"
        return Finding(state, "systemd", found, f"copy systemd/af-alg.conf to {path}.d/")
    found = f"{path}, {'with' if allowed else 'without'} AF_ALG"
    return Finding(State.OK, "systemd", found)


def _guard_unit() -> Finding:
    """Return the finding on the unit that closes protected prefixes from the boot on."""
    if not any((folder / GUARD_UNIT).exists() for folder in UNIT_FOLDERS):
        found = "no unit is installed: from a boot to the gateway's start nothing is closed"
        return Finding(State.WARNING, "guard", found, "run 'scripts/install'")
    if not any(any(folder.glob(f"*.wants/{GUARD_UNIT}")) for folder in UNIT_FOLDERS):
        found = "not enabled: from a boot to the gateway's start nothing is closed"
        return Finding(State.WARNING, "guard", found, f"run 'systemctl enable {GUARD_UNIT}'")
    return Finding(State.OK, "guard", f"{GUARD_UNIT} is enabled")


def _daemon(control_socket: Path) -> tuple[bool, Finding, int | None]:
    """Return True if the gateway is running, the finding, and its process id if it is known.

    A gateway that refuses this user counts as running.
    """
    try:
        reply = call(control_socket, "GetStatus", {})
    except ControlError as error:
        return True, Finding(State.WARNING, "gateway", error.what, error.hint or ""), None
    except EspGwError as error:
        return False, Finding(State.OK, "gateway", error.what, error.hint or ""), None
    found = f"runs, pid {reply['pid']}, engine {reply['engine']}"
    warnings = reply["warnings"]
    if isinstance(warnings, list) and warnings:
        text = f"{found}, {counted(len(warnings), 'warning')}"
        finding = Finding(State.WARNING, "gateway", text, "see 'esp-gw status'")
    else:
        finding = Finding(State.OK, "gateway", found)
    return True, finding, int(str(reply["pid"]))
