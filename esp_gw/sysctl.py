"""Kernel settings that keep a tunnel from working as its person expects: read, never written."""

from __future__ import annotations

from pathlib import Path

from esp_gw.model import Desired, Mode

PROC_NET = Path("/proc/sys/net")
_STRICT = 1


def network_warnings(desired: Desired, interface: str, root: Path = PROC_NET) -> list[str]:
    """Return a line for each setting in the way, with the command that changes it."""
    warnings = []
    for version, name in ((4, "ipv4/ip_forward"), (6, "ipv6/conf/all/forwarding")):
        joins_a_network = any(
            prefix.version == version and prefix.num_addresses > 1
            for tunnel in desired.tunnels
            if tunnel.mode is Mode.TUNNEL
            for prefix in tunnel.local_ts
        )
        if joins_a_network and _read(root / name) == 0:
            key = "net." + name.replace("/", ".")
            warnings.append(
                f"{key} is 0: only this host reaches the other side, not the network behind it; "
                f"run 'sysctl -w {key}=1'"
            )
    if any(tunnel.mode is Mode.TRANSPORT for tunnel in desired.tunnels):
        strict = [
            path.parent.name
            for path in sorted((root / "ipv4/conf").glob("*/rp_filter"))
            if path.parent.name not in ("all", "default", "lo", interface)
            and max(_read(path), _read(root / "ipv4/conf/all/rp_filter")) == _STRICT
        ]
        if strict:
            warnings.append(
                f"rp_filter is strict on {', '.join(strict)}: the kernel drops what a "
                "transport-mode peer sends; run 'sysctl -w net.ipv4.conf.all.rp_filter=2'"
            )
    return warnings


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1
