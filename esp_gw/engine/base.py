"""The contract of an engine: the data plane behind one small interface.

All methods are called from the event loop's thread and return at once. Events are delivered on the
same thread, through the callback given to `open`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.desired import EngineSettings
from esp_gw.engine.stages import StageTimes
from esp_gw.model import DropReason, Encapsulation, IPAddress, Lease, Policy, Sa


@dataclass(frozen=True, slots=True)
class LeaseLow:
    """An outbound SA has used half of its lease; unless extended it will drop `lease-exhausted`."""

    sa: str


@dataclass(frozen=True, slots=True)
class SoftExpired:
    """An SA is near the end of its sequence numbers and needs a new key."""

    sa: str


@dataclass(frozen=True, slots=True)
class HardExpired:
    """An SA has used its last sequence number and no longer carries packets."""

    sa: str


@dataclass(frozen=True, slots=True)
class PeerAddressChanged:
    """The peer's source address changed; replies now go to the new one (RFC 7296 2.23).

    Reported for an authenticated packet that is the newest of its SA.
    """

    sa: str
    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class CeilingNear:
    """An inbound SA has received a number, `highest`, above the one that `watch_numbers` gave.

    Reported once for each such number.
    """

    sa: str
    highest: int


@dataclass(frozen=True, slots=True)
class PathMtuChanged:
    """The kernel learned a path MTU to `remote`, in bytes, outer IP header included."""

    remote: IPAddress
    mtu: int


@dataclass(frozen=True, slots=True)
class GsoRefused:
    """The kernel refused a GSO send to `remote` with `error`; packets are now sent one by one."""

    remote: IPAddress
    error: str


@dataclass(frozen=True, slots=True)
class MergeRefused:
    """The TUN refused a super-packet of `kind`, TCP or UDP; such packets are now written singly."""

    kind: str


@dataclass(frozen=True, slots=True)
class AfAlgLost:
    """AF_ALG failed with `reason` and is no longer used; every SA continues in the library."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The TUN device or a socket is gone; the engine can't continue and the daemon must exit."""

    reason: str


Event = (
    LeaseLow
    | SoftExpired
    | HardExpired
    | PeerAddressChanged
    | CeilingNear
    | PathMtuChanged
    | GsoRefused
    | MergeRefused
    | AfAlgLost
    | EngineFailed
)


@dataclass(frozen=True, slots=True)
class SaCounters:
    """Counters of one SA; `bytes` counts inner packets.

    `seq` is the next number of an outbound SA and the highest authenticated one of an inbound SA.
    `lease_end` is 0 for an inbound SA. `remote` and `remote_port` are the peer's current address,
    unspecified while it is not known.
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
    """All counters of an engine; `drops` has totals by reason, packets without an SA included.

    `ike_passed` counts the IKE datagrams that `relay_ike` has passed on.
    `bulk_on_lane0` counts the packets of bulk flows that the worker of lane 0 has sealed: it read
    them from its queue. It is 0 in an engine whose lanes have no workers of their own.
    """

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    keepalives_out: int
    keepalives_in: int
    drops: Mapping[str, int]
    sas: Mapping[str, SaCounters]
    bulk_on_lane0: int = 0
    ike_passed: int = 0


RELAY_HEADER = struct.Struct("!16s16sHH")
"""Header of a relayed IKE datagram: source and destination with their UDP ports.

IPv4 addresses are mapped into IPv6 (RFC 4291 2.5.5.2).
"""

NEVER = 2**64 - 1
"""A number for `watch_numbers` above which there is none."""

MAX_SAMPLES = 8
"""Bound on distinct samples of one reason and worker, and on openings, until they are taken."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample of the packets dropped for `reason`; `sa` is the SA that counts them, if any.

    Of an outer packet (unknown-spi, wrong-encapsulation, auth-failed, replay-old,
    replay-duplicate): its source, with port 0 if it came as protocol 50, and its `spi`; protocol
    17 or 50, no destination. Of an inner packet (no-policy, no-sa, selector-mismatch, too-big):
    its addresses, protocol and ports, 0 where it has none; no `spi`.
    """

    reason: DropReason
    sa: str | None
    source: IPAddress
    source_port: int
    destination: IPAddress | None
    destination_port: int
    protocol: int
    spi: int | None


@dataclass(frozen=True, slots=True)
class Opening:
    """A sample of the inner packets that came through `sa` and ask for an answer.

    The first packet of a flow: an echo request (port 0), or a TCP SYN without ACK.
    """

    sa: str
    source: IPAddress
    destination: IPAddress
    protocol: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class OuterSocket:
    """An outer socket that the engine needs: local address and encapsulation."""

    address: IPAddress
    encapsulation: Encapsulation


@dataclass(frozen=True, slots=True)
class OffloadStatus:
    """State of one offload; `why` is the reason that it is unused or used in part, or empty."""

    in_use: bool
    why: str = ""


REST_MS = 40
"""Milliseconds after the last packet for which `latency: low` still keeps processors awake.

Voice sends a packet each 20 ms, games and pictures at 30 Hz each 33 ms: a flow of them is one hold,
without a system call a packet. Sparser traffic gains little, and power is saved between.
"""


@dataclass(frozen=True, slots=True)
class LatencyStatus:
    """State of `gateway.latency`, the `setting`.

    With `low`, `held` is True while processors are kept out of idle states: from a packet on until
    there was none for `rest_ms`. `why` is the reason that it has no effect, or empty.
    """

    setting: str
    held: bool = False
    rest_ms: int = REST_MS
    why: str = ""

    @property
    def warnings(self) -> list[str]:
        """A line for a person if the setting has no effect."""
        return [f"'latency: {self.setting}' has no effect: {self.why}"] if self.why else []


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """State of the lanes of tunnels with several SAs.

    `steered` is true if what comes in goes to the workers by lane, lane 0 to the first one: then
    the kernel has a list of `listed` SPIs, else of none. `laned` counts the inbound SAs with a
    lane, those replaced by a rekey that still receive included; at most `limit` can be listed, 0
    in an engine that has one worker for all. `refused` is the kernel's reason for a list that it
    refused. `priority` is the nice value of lane 0's worker, None if it has that of the others,
    `priority_refused` the kernel's reason for refusing another one.
    """

    steered: bool = False
    listed: int = 0
    laned: int = 0
    limit: int = 0
    refused: str | None = None
    priority: int | None = None
    priority_refused: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Resources and offloads that an engine uses.

    `provider` maps each suite in use to its library and version; `af_alg` maps the same suites to
    the state of AF_ALG. `aes` names the processor's instructions for AES-GCM. `offload` is keyed
    by the field names of `Offloads`.
    """

    workers: int
    pinned: bool
    latency: LatencyStatus
    provider: Mapping[str, str]
    aes: str
    offload: Mapping[str, OffloadStatus]
    af_alg: Mapping[str, AfAlgStatus] = field(default_factory=dict)
    lanes: LaneStatus = field(default_factory=LaneStatus)


class Engine(Protocol):
    """A data plane: TUN on one side, ESP on real sockets on the other."""

    name: str

    @property
    def queues(self) -> int:
        """The number of queues of the TUN device that the engine has open."""

    def open(self, settings: EngineSettings, on_event: Callable[[Event], None]) -> None:
        """Create the TUN device with one queue; nothing reads or writes it before `start`.

        A device of this name must not exist. The new one belongs to user 0, so that no other user
        opens a queue of it; who did before it had an owner is for the caller to find out. An
        engine that is closed before its start can be opened again. Raises EngineError.
        """

    def start(self) -> None:
        """Open the other queues and carry packets. Raises EngineError."""

    def close(self) -> None:
        """Stop and close every descriptor, which removes the TUN device."""

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        """Open the sockets that are missing, then close those not wanted. Raises EngineError."""

    def install_outbound(self, sa: Sa, lease: Lease) -> None:
        """Add an outbound SA that begins at the lease's first sequence number."""

    def install_inbound(
        self, sa: Sa, highest_seq: int, fence: int = 0, notice_at: int = NEVER
    ) -> None:
        """Add an inbound SA whose window treats every number up to `highest_seq` as seen.

        Numbers up to `fence`, which may be replays from before a crash, don't tell where a peer is
        that may be anywhere. A peer with an address is followed at once: behind a NAT whose mapping
        changed it would be lost for as long as its numbers take to pass the fence.
        `notice_at` is as in `watch_numbers`.
        """

    def watch_numbers(self, notices: Mapping[str, int]) -> None:
        """Report CeilingNear with the next number of each of these inbound SAs above its one.

        SAs that are not there are ignored.
        """

    def place_peer(self, name: str, address: IPAddress, port: int) -> None:
        """Send to this address until the peer of an SA is heard, unless its address is known.

        Does nothing for an SA that is not there, and with an address of the other IP version.
        """

    def at_once(self) -> AbstractContextManager[None]:
        """Return a context at whose end the SAs installed and replaced inside take effect together.

        If one of them can't be, nothing is changed, and the EngineError propagates. Only what is
        there at the end counts: two SAs may exchange their names or SPIs. Other calls inside the
        context find the SAs that were there before it, take effect when they are called, and are
        not undone; `remove_sas` makes room for an SA that is installed inside.
        """

    def replace_sa(self, name: str, sa: Sa) -> None:
        """Make the SA `name` into `sa`, which has the same key and direction.

        Name, SPI, addresses, mode, selectors, encapsulation, window and the rest may be others.
        Sequence counter, lease, replay window, counters and (where the configured remote address,
        its port and the encapsulation are unchanged) the peer's current address move into it.
        Inside `at_once` it takes effect together with the rest, in one publication: no moment
        without the one or the other, no packet lost. `name` is its name before the `at_once`, in
        which it is replaced once. Removed inside the `at_once`, it can't be replaced.

        A key belongs to its suite. Sequence numbers go on counting where ESN is switched: an SA
        that has used more than 2**32 - 1 of them has none left without ESN, and one that gets
        more reports LeaseLow. A wider window counts the numbers left of the former one as seen.

        Raises EngineError: no SA `name`; another key, suite or direction; a name or inbound SPI
        that another SA holds.
        """

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        """Remove SAs and their keys; return their final counters, in the order of `names`.

        Nothing is sent or accepted through them afterwards. Raises EngineError if one doesn't
        exist; no SA is removed in that case.
        """

    def send_dummy(self, name: str) -> None:
        """Send a dummy packet (RFC 4303 2.6) by an outbound SA whose peer has a known address.

        Does nothing for an SA that is not there.
        """

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Replace the SPD in one step; `policies` are in order of precedence."""

    def extend_lease(self, name: str, lease: Lease) -> None:
        """Give an outbound SA more sequence numbers, to be used after its current ones."""

    def counters(self) -> Counters:
        """Return a snapshot of every counter."""

    def counters_of(self, names: Collection[str]) -> dict[str, SaCounters]:
        """Return the counters of these SAs, by name, without those that are not there."""

    def advanced_replay_floors(self) -> dict[str, int]:
        """Return the highest sequence number of each inbound SA that advanced since last call."""

    def refused(self) -> list[Refused]:
        """Return samples of the packets dropped since the last call.

        For each reason and worker the first MAX_SAMPLES distinct ones: by SPI and source of outer
        packets, by the addresses of inner ones.
        """

    def openings(self) -> list[Opening]:
        """Return the first MAX_SAMPLES openings since the last call.

        A worker sees a flow for the first time once: echo requests between two hosts are one flow
        with their replies.
        """

    def lane_flows(self) -> Mapping[str, int]:
        """Return the flows that each outbound SA with a lane carried in the last 10 s, by name.

        A flow counts for the SA of its last packet.
        """

    def relay_ike(self, fd: int | None) -> None:
        """Pass IKE datagrams of the outer UDP sockets to a connected unix datagram socket.

        Each is sent without its Non-ESP Marker (RFC 3948 2.2) behind RELAY_HEADER. One that can't
        be passed on, or comes while there is no such socket, is dropped as `ike-datagram`. The
        engine keeps a copy of `fd`. Raises EngineError for a file of another kind.
        """

    def send_ike(
        self, source: IPAddress, destination: IPAddress, port: int, message: bytes
    ) -> None:
        """Send an IKE message, behind a Non-ESP Marker, from the UDP socket of an outer address.

        It is never queued, and lost where the socket is full or the kernel refuses it: IKE sends it
        again. Raises EngineError if there is no such socket.
        """

    def forget_flows(self) -> None:
        """Treat every inbound flow as new: its next packet may be an opening."""

    def start_profile(self) -> None:
        """Measure the stages of every turn that begins from now on; without, they cost nothing."""

    def stop_profile(self) -> None:
        """Measure no further turn."""

    def stage_times(self) -> Sequence[StageTimes]:
        """Return what each thread has spent on the stages, in all profiles so far.

        A stage that the engine does not have is left out.
        """

    def stage_clock_ns(self) -> float:
        """Return the nanoseconds that one read of the stages' clock takes."""

    def status(self) -> EngineStatus:
        """Return the resources and offloads in use, with the reason for each one that is not."""
