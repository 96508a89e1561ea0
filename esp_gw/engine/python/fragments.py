"""Verdicts on fragmented packets: only the first fragment has the ports (RFC 4301 7.3)."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from esp_gw.engine.python.wire import Inner
from esp_gw.protocol import FRAGMENT_HEADER, IPV6_HEADER_LEN

MAX_DATAGRAMS = 64
"""Bound on the fragmented packets that are remembered; the oldest makes room for a new one."""

Verdict = TypeVar("Verdict")


class Fragment(NamedTuple):
    """Identity of the packet that a fragment is a part of, and the place of the fragment."""

    datagram: tuple[int, int, int, int]
    is_first: bool


def fragment_of(packet: memoryview, inner: Inner) -> Fragment | None:
    """Return the packet that a fragment belongs to; `inner` is what parse returned for it.

    None for a whole packet, and where the fragment header isn't the first extension header.
    """
    if not inner.fragment:
        return None
    if inner.version == 4:
        ident, offset = int.from_bytes(packet[4:6]), int.from_bytes(packet[6:8]) & 0x1FFF
    elif packet[6] == FRAGMENT_HEADER:
        at = IPV6_HEADER_LEN
        ident = int.from_bytes(packet[at + 4 : at + 8])
        offset = int.from_bytes(packet[at + 2 : at + 4]) & 0xFFF8
    else:
        return None
    return Fragment((inner.src, inner.dst, inner.protocol, ident), not offset)


class Fragments(Generic[Verdict]):
    """Verdicts on the first fragments of the latest packets.

    A later fragment can't replace the ports: it begins behind them.
    """

    def __init__(self) -> None:
        self._verdicts: dict[tuple[int, int, int, int], Verdict] = {}

    def remember(self, fragment: Fragment, verdict: Verdict) -> None:
        """Keep the verdict on a first fragment for those that follow it."""
        if fragment.datagram not in self._verdicts and len(self._verdicts) >= MAX_DATAGRAMS:
            del self._verdicts[next(iter(self._verdicts))]
        self._verdicts[fragment.datagram] = verdict

    def get(self, fragment: Fragment) -> Verdict | None:
        """Return the verdict on the first fragment of the same packet, if it is known."""
        return self._verdicts.get(fragment.datagram)

    def clear(self) -> None:
        """Forget all verdicts."""
        self._verdicts.clear()
