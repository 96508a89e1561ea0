"""One tunnel on a simulated clock: counters grow, packets are refused, and the roster looks on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from esp_gw.engine.base import Opening, Refused, SaCounters
from esp_gw.health.causes import Kind
from esp_gw.health.roster import Look, Roster, Watched
from esp_gw.model import Direction, DropReason, IPAddress, Sa
from esp_gw.network.icmp import Unreachable
from tests.support.builders import desired, make_sa, protect

OUT = make_sa("t/out", Direction.OUTBOUND, 0x1001, pair="t/in")
IN = make_sa("t/in", Direction.INBOUND, 0x1002, pair="t/out")


class TunnelLife:
    """A pair of SAs, its counters, and a look each second."""

    def __init__(self, liveness: int = 0, **fields: object) -> None:
        self.out: Sa = replace(OUT, liveness=liveness, **fields)  # type: ignore[arg-type]
        self.inbound: Sa = replace(IN, **fields)  # type: ignore[arg-type]
        self.desired = desired((self.out, self.inbound), (protect("t", "t/out", *OUT.selectors),))
        self.host = frozenset({self.out.local})
        self.chains: dict[int, str | None] = {}
        self.roster = Roster()
        self.now = 1000.0
        self.sent = self.delivered = self.numbers = 0
        self.drops_out: Counter[str] = Counter()
        self.drops_in: Counter[str] = Counter()
        # Drops of further inbound SAs, and the next numbers of further outbound ones, by name.
        self.more: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.next: dict[str, int] = {}
        self.look()

    @property
    def watched(self) -> Watched:
        return self.roster.tunnels["t/out"]

    @property
    def state(self) -> str:
        return self.watched.state

    @property
    def kinds(self) -> list[Kind]:
        return [cause.kind for cause in self.watched.causes]

    @property
    def text(self) -> str:
        return self.watched.causes[0].text

    def second(
        self,
        *,
        sent: int = 0,
        delivered: int = 0,
        out: dict[DropReason, int] | None = None,
        drops: dict[DropReason, int] | None = None,
        refused: Sequence[Refused] = (),
        openings: Sequence[Opening] = (),
        unreachable: Sequence[Unreachable] = (),
        seconds: float = 1.0,
    ) -> None:
        """Let a second pass in which this happens."""
        self.sent += sent
        self.numbers += sent
        self.delivered += delivered
        self.drops_out.update(out or {})
        self.drops_in.update(drops or {})
        self.now += seconds
        self.look(refused, openings, unreachable)

    def look(
        self,
        refused: Sequence[Refused] = (),
        openings: Sequence[Opening] = (),
        unreachable: Sequence[Unreachable] = (),
    ) -> None:
        self.roster.follow(self.desired, self.now)
        counters = {
            sa.name: SaCounters(0, 0, seq, 0, sa.remote, sa.remote_port)
            for sa, seq in ((self.out, self.numbers), (self.inbound, 0))
        } | {
            name: SaCounters(0, 0, seq, 0, self.out.remote, self.out.remote_port)
            for name, seq in self.next.items()
        }
        carried = {
            self.out.name: (self.sent, dict(self.drops_out)),
            self.inbound.name: (self.delivered, dict(self.drops_in)),
            **{name: (0, dict(drops)) for name, drops in self.more.items()},
        }
        look = Look(self.now, counters, carried, refused, openings, unreachable, self.host)
        for _ in self.roster.look(look, self.chains):
            pass


def outer(reason: DropReason, spi: int, source: IPAddress = OUT.remote) -> Refused:
    """Return a sample of an ESP packet."""
    return Refused(reason, None, source, 4500, None, 0, 17, spi)


def inner(reason: DropReason, source: str, destination: str, sa: str | None = None) -> Refused:
    """Return a sample of an inner packet."""
    return Refused(reason, sa, ip_address(source), 0, ip_address(destination), 0, 1, None)
