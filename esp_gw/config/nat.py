"""Transport mode through a NAT: the original addresses that are needed and not given.

The checksums of TCP and UDP cover the addresses (RFC 3948 3.1.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from esp_gw.model import Direction, Encapsulation, IPAddress, Mode, Sa
from esp_gw.values import is_private

_BREAKS = "and breaks the checksums of TCP and UDP in transport mode"


def needs_local_original(sa: Sa) -> str | None:
    """The sentence that asks for `local_original` if only a NAT can be between the two ends."""
    if not _is_mended(sa) or sa.local_original is not None:
        return None
    if not is_private(sa.local) or is_private(sa.remote):
        return None
    return (
        f"a NAT is between {sa.local}, a private address, and {sa.remote}, {_BREAKS}: write "
        f"'local_original', the address that the peer has in 'remote', or {sa.local} if there is "
        "no NAT"
    )


def needs_remote_original(sas: Iterable[tuple[Sa, IPAddress, int]]) -> Iterator[str]:
    """Sentences that ask for `remote_original`, one for each tunnel whose peer is behind a NAT.

    With each SA comes the address and the port from which its peer sends now.
    """
    asked = set()
    for sa, address, port in sas:
        name = sa.tunnel or sa.name
        if not _is_mended(sa) or sa.remote_original is not None or name in asked:
            continue
        if address == sa.remote:
            # A NAT that leaves the port alone is not seen; one with another port is certain.
            if port == sa.remote_port:
                continue
        elif is_private(sa.remote):
            # The peer's own address, from which its checksums are right.
            continue
        asked.add(name)
        yield (
            f"{'tunnel' if sa.tunnel else 'SA'} {name}: a NAT is between, for the peer sends from "
            f"{address} port {port}, not {sa.remote} port {sa.remote_port}, {_BREAKS}: write "
            f"'remote_original', the address that the peer has in 'local'"
        )


def _is_mended(sa: Sa) -> bool:
    return (
        sa.mode is Mode.TRANSPORT
        and sa.encapsulation is Encapsulation.UDP
        and sa.direction is Direction.INBOUND
    )
