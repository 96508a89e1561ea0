"""Hints about suites that are slow on this machine, for `check`, `status` and the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec

from esp_gw.crypto.processor import aes_path
from esp_gw.crypto.recommend import MARGIN, OTHER_SUITE, Figures, times_as_long
from esp_gw.desired import GatewaySettings
from esp_gw.model import AES_GCM, NO_AES, Tunnel

InKernel = frozenset[str]
Found = Mapping[str, Figures]
_NAMED = 3
"""Number of tunnels that a hint names; the others are only counted."""


class Advice:
    """Finds tunnels that would be faster with another suite. Each suite is measured once.

    `figures` measures suites, with AF_ALG for those in the second argument. It is called only if
    the processor has no AES instructions: with them AES-GCM is the fastest. A tunnel with
    ChaCha20-Poly1305 never gets a hint, as it suits a peer without AES instructions and the peer's
    processor is unknown.
    """

    def __init__(self, aes: str, figures: Callable[[list[str], InKernel], Found]) -> None:
        self._aes = aes
        self._figures = figures
        self._factors: dict[tuple[str, bool], float] = {}

    def hints(self, tunnels: Iterable[Tunnel], in_kernel: InKernel = frozenset()) -> list[str]:
        """Return one line for each suite that is slow; may block for some tens of milliseconds.

        Suites in `in_kernel` are sealed by AF_ALG, the others by a library.
        """
        if self._aes != NO_AES:
            return []
        names: dict[str, list[str]] = {}
        for tunnel in tunnels:
            if tunnel.suite.cipher == AES_GCM:
                names.setdefault(tunnel.suite.name, []).append(tunnel.name)
        self._measure(
            [name for name in names if (name, name in in_kernel) not in self._factors], in_kernel
        )
        factors = {name: self._factors[name, name in in_kernel] for name in sorted(names)}
        return [
            _hint(name, factor, names[name]) for name, factor in factors.items() if factor >= MARGIN
        ]

    def _measure(self, suites: list[str], in_kernel: InKernel) -> None:
        if not suites:
            return
        figures = self._figures([*suites, OTHER_SUITE], in_kernel)
        for suite in suites:
            # A suite that can't be measured does not count as slow.
            known = suite in figures and OTHER_SUITE in figures
            factor = times_as_long(figures[suite], figures[OTHER_SUITE]) if known else 0
            self._factors[suite, suite in in_kernel] = factor


def advice(settings: GatewaySettings) -> Advice:
    """Return the advice for a gateway with these settings on this machine."""

    def figures(suites: list[str], in_kernel: InKernel) -> Found:
        # Imported late: the measurement of the python engine imports cryptography, which a
        # processor with AES instructions does not need.
        from esp_gw.crypto.measure import BRIEF, Sealer  # noqa: PLC0415

        native = settings.engine != "python" and find_spec("esp_gw_core") is not None
        return Sealer(native, settings.provider, in_kernel).figures(suites, BRIEF)

    return Advice(aes_path(), figures)


def _hint(suite: str, factor: float, tunnels: list[str]) -> str:
    named = ", ".join(tunnels[:_NAMED])
    more = f" and {len(tunnels) - _NAMED} more" if len(tunnels) > _NAMED else ""
    return (
        f"{'tunnels' if len(tunnels) > 1 else 'tunnel'} {named}{more}: the suite {suite} takes "
        f"{factor:.1f} times as long as {OTHER_SUITE} on this processor, which has no AES "
        f"instructions; if the peer has {OTHER_SUITE} too, use it at both ends, with new keys"
    )
