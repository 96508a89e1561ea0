"""Changes of the SAD that take effect in one step, checked as a whole first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from esp_gw.engine.python.sad import Watched
from esp_gw.errors import EngineError
from esp_gw.model import Direction, Lease, Sa


class SadChange:
    """SAs to install and to replace, collected; `replaced` is keyed by the present names."""

    def __init__(self) -> None:
        self.outbound: list[tuple[Sa, Lease]] = []
        self.inbound: list[tuple[Sa, Watched]] = []
        self.replaced: dict[str, Sa] = {}

    def replace(self, name: str, sa: Sa) -> None:
        """Add a replacement. Raises EngineError for a second one of the same SA."""
        if name in self.replaced:
            raise EngineError("an SA is replaced once in one step", where=name)
        self.replaced[name] = sa

    def check(self, sas: Mapping[str, Sa]) -> None:
        """Check that the change can be made to the installed `sas`, keyed by name.

        Raises EngineError: an unknown SA, another key or direction, a name or SPI that isn't free.
        """
        for name, sa in self.replaced.items():
            before = sas.get(name)
            if before is None:
                raise EngineError("no such SA", where=name)
            if (sa.keymat, sa.suite) != (before.keymat, before.suite):
                raise EngineError("an SA can't be replaced by one with another key", where=name)
            if sa.direction is not before.direction:
                raise EngineError("an SA can't change its direction", where=name)
        staying = {name: sa for name, sa in sas.items() if name not in self.replaced}
        names = set(staying)
        spis = {sa.spi for sa in staying.values() if sa.direction is Direction.INBOUND}
        for sa in self._arriving():
            if sa.name in names:
                raise EngineError("another SA has this name", where=sa.name)
            names.add(sa.name)
            if sa.direction is Direction.INBOUND:
                if sa.spi in spis:
                    raise EngineError("another inbound SA has this SPI", where=sa.name)
                spis.add(sa.spi)

    def _arriving(self) -> Iterator[Sa]:
        yield from self.replaced.values()
        yield from (sa for sa, _ in self.outbound)
        yield from (sa for sa, _ in self.inbound)
