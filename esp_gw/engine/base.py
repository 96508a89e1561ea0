"""What an engine is: the data plane behind one small interface, the same for every engine.

All methods are called from the event loop's thread and return at once. Events are delivered on the
same thread, through the callback given to `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.desired import EngineSettings
from esp_gw.model import Encapsulation, IPAddress, Lease, Policy, Sa


@dataclass(frozen=True, slots=True)
class LeaseLow:
    """An outbound SA has used half of its lease: extend it, or it will drop `lease-exhausted`."""

    sa: str


@dataclass(frozen=True, slots=True)
class SoftExpired:
    """An SA is near the end of its sequence numbers: time for a new key."""

    sa: str


@dataclass(frozen=True, slots=True)
class HardExpired:
    """An SA has used its last sequence number and carries nothing any more."""

    sa: str


@dataclass(frozen=True, slots=True)
class PeerAddressChanged:
    """An authenticated, newest packet came from elsewhere (RFC 7296 2.23): replies go there now."""

    sa: str
    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class PathMtuChanged:
    """The kernel learned the path MTU to `remote`: bytes, outer IP header included."""

    remote: IPAddress
    mtu: int


@dataclass(frozen=True, slots=True)
class GsoRefused:
    """The kernel refused runs of packets to `remote` in one send, with `error`: they go singly."""

    remote: IPAddress
    error: str


@dataclass(frozen=True, slots=True)
class AfAlgLost:
    """AF_ALG failed, with `reason`, and is used no more: every SA goes on in the library."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The TUN device or a socket is gone and the engine can't go on: the daemon must end."""

    reason: str


Event = (
    LeaseLow
    | SoftExpired
    | HardExpired
    | PeerAddressChanged
    | PathMtuChanged
    | GsoRefused
    | AfAlgLost
    | EngineFailed
)


@dataclass(frozen=True, slots=True)
class SaCounters:
    """What one SA has done: `bytes` are of inner packets.

    `seq` is the next number of an outbound SA and the highest authenticated one of an inbound SA.
    `lease_end` is 0 for an inbound SA. `remote`, `remote_port`: where the peer is now.
    """

    packets: int
    bytes: int
    seq: int
    lease_end: int
    remote: IPAddress
    remote_port: int
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters of an engine; `drops` are totals by reason, packets without an SA included."""

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    keepalives_out: int
    keepalives_in: int
    drops: Mapping[str, int]
    sas: Mapping[str, SaCounters]


@dataclass(frozen=True, slots=True)
class OuterSocket:
    """One socket that the engine needs: the local address, and how ESP travels through it."""

    address: IPAddress
    encapsulation: Encapsulation


@dataclass(frozen=True, slots=True)
class OffloadStatus:
    """Whether an offload is in use; `why` it is not, or not everywhere: one line, or empty."""

    in_use: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How an engine works.

    `provider` is the library, with its version, by the names of the suites in use, and `af_alg`
    whether the kernel does its work, by the same names; `aes` the processor's instructions for
    AES-GCM; `offload` is by the names of `Offloads`.
    """

    workers: int
    pinned: bool
    busy_poll_us: int
    provider: Mapping[str, str]
    aes: str
    offload: Mapping[str, OffloadStatus]
    af_alg: Mapping[str, AfAlgStatus] = field(default_factory=dict)


class Engine(Protocol):
    """A data plane: TUN on one side, ESP on real sockets on the other."""

    name: str

    def open(self, settings: EngineSettings, on_event: Callable[[Event], None]) -> None:
        """Create the TUN device and start reading it. Raises EngineError."""

    def close(self) -> None:
        """Stop, close every descriptor; the TUN device goes with them."""

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        """Open those that are missing, then close those not named. Raises EngineError."""

    def install_outbound(self, sa: Sa, lease: Lease) -> None:
        """Add an outbound SA that begins at the lease's first sequence number."""

    def install_inbound(self, sa: Sa, highest_seq: int) -> None:
        """Add an inbound SA whose window treats every number up to `highest_seq` as seen."""

    def at_once(self) -> AbstractContextManager[None]:
        """Let the SAs that are installed inside come into use in one step, at its end.

        Where one of them can't be installed none is, and the EngineError goes on.
        """

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        """Forget SAs and their keys; the counters are final: nothing more is sent or accepted.

        They are in the order of `names`. Raises EngineError where there is no such SA, and then
        none is forgotten.
        """

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Put a new SPD in place in one step, in the order given."""

    def extend_lease(self, name: str, lease: Lease) -> None:
        """Give an outbound SA more sequence numbers, used after those it has."""

    def counters(self) -> Counters:
        """A snapshot of every counter."""

    def advanced(self) -> dict[str, int]:
        """How far the inbound SAs came whose windows advanced since the last call."""

    def status(self) -> EngineStatus:
        """How it works: what it uses of what there is, and why not more."""
