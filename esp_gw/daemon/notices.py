"""Log lines on those events of the engine that need no other action."""

from __future__ import annotations

from esp_gw.engine.base import AfAlgLost, GsoRefused, MergeRefused, SoftExpired
from esp_gw.logs import log
from esp_gw.model import IPAddress

Notice = AfAlgLost | GsoRefused | MergeRefused | SoftExpired


class Notices:
    """Logs notices; what every SA of a peer reports is logged once."""

    def __init__(self) -> None:
        self._without_gso: set[IPAddress] = set()

    def tell(self, notice: Notice) -> None:
        """Log a notice; a refusal of GSO only the first time for a peer."""
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
