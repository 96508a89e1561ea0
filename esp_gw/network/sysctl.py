"""Checks of kernel settings that would keep a tunnel from working; they are never changed."""

from __future__ import annotations

from pathlib import Path

from esp_gw.desired import Desired
from esp_gw.model import Mode, Tunnel

PROC_NET = Path("/proc/sys/net")
_STRICT = 1


def network_warnings(desired: Desired, interface: str, root: Path = PROC_NET) -> list[str]:
    """Return one line per unsuitable setting, with the command that changes it."""
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
                f"{key} is 0: this host reaches the other side, the network behind it doesn't; "
                f"run 'sysctl -w {key}=1'"
            )
    if any(_returns_into_the_tun(tunnel) for tunnel in desired.tunnels):
        strict = [
            path.parent.name
            for path in sorted((root / "ipv4/conf").glob("*/rp_filter"))
            if path.parent.name not in ("all", "default", "lo", interface)
            and max(_read(path), _read(root / "ipv4/conf/all/rp_filter")) == _STRICT
        ]
        if strict:
            warnings.append(
                f"rp_filter is strict on {', '.join(strict)}: the kernel drops packets of a peer "
                "whose outer address is in remote_ts; run 'sysctl -w net.ipv4.conf.all.rp_filter=2'"
            )
    return warnings


def _returns_into_the_tun(tunnel: Tunnel) -> bool:
    """Return True if the kernel's reverse path to the IPv4 peer leads into the TUN."""
    return any(
        tunnel.remote in theirs
        # A protected default route takes only packets whose source is in local_ts.
        and (theirs.prefixlen > 0 or any(tunnel.local in ours for ours in tunnel.local_ts))
        for theirs in tunnel.remote_ts
        if theirs.version == tunnel.remote.version == 4
    )


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1
