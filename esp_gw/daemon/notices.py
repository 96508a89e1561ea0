"""Log lines on those events of the engine that need no other action."""

from __future__ import annotations

from collections.abc import Mapping

from esp_gw.engine.base import AfAlgLost, GsoRefused, HardExpired, MergeRefused, SoftExpired
from esp_gw.logs import log
from esp_gw.model import Direction, IPAddress, KeyMaterial, Sa

Notice = AfAlgLost | GsoRefused | HardExpired | MergeRefused | SoftExpired


class Notices:
    """Logs notices; what every SA of a peer reports is logged once."""

    def __init__(self) -> None:
        self._without_gso: set[IPAddress] = set()
        self._used_up: set[KeyMaterial] = set()

    def tell(self, notice: Notice, sas: Mapping[str, Sa]) -> None:
        """Log a notice; a refusal of GSO only the first time for a peer.

        `sas` are the engine's. An SA without numbers is an error, and a warning while another lane
        of its tunnel works.
        """
        match notice:
            case GsoRefused(remote, error):
                if remote not in self._without_gso:
                    self._without_gso.add(remote)
                    text = "the kernel refuses UDP segmentation: packets are sent one by one"
                    log.warning(text, remote=str(remote), error=error)
            case MergeRefused(kind):
                text = "the TUN refuses super-packets: packets are written to it one by one"
                log.warning(text, kind=kind)
            case AfAlgLost(reason):
                log.warning("AF_ALG is lost: the library is used instead", reason=reason)
            case SoftExpired(name):
                log.warning("an SA is running out of sequence numbers: give it a new key", sa=name)
            case HardExpired(name):
                self._expired(name, sas)

    def _expired(self, name: str, sas: Mapping[str, Sa]) -> None:
        sa = sas.get(name)
        if sa is not None:
            self._used_up = {each.keymat for each in sas.values()} & {*self._used_up, sa.keymat}
            if any(
                _is_sister(sa, each) and each.keymat not in self._used_up for each in sas.values()
            ):
                text = "a lane carries nothing, others do its work: give its SA a new key"
                log.warning(text, tunnel=sa.tunnel, lane=sa.lane, sa=name)
                return
        log.error("an SA has no sequence number left: give it a new key", sa=name)


def _is_sister(sa: Sa, other: Sa) -> bool:
    return (
        sa.lane is not None
        and other.lane is not None
        and other.direction is Direction.OUTBOUND
        and other.tunnel == sa.tunnel
    )
