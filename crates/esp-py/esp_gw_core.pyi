"""The native data plane of esp_gw: worker threads between a TUN device and ESP.

Every class but `NativeEngine` is immutable. Constructors raise ValueError for a value that can not
be, and OverflowError for a number that doesn't fit.
"""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import ClassVar, Literal, final

__all__ = [
    "AfAlgLost",
    "CeilingNear",
    "Counters",
    "Direction",
    "Encapsulation",
    "EngineFailed",
    "GsoRefused",
    "HardExpired",
    "InboundSa",
    "LaneStatus",
    "LatencyStatus",
    "Lease",
    "LeaseLow",
    "MergeRefused",
    "Mode",
    "NativeEngine",
    "OffloadStatus",
    "Offloads",
    "Opening",
    "OutboundSa",
    "OuterSocket",
    "PathMtuChanged",
    "PeerAddressChanged",
    "Policy",
    "PolicyAction",
    "PortRange",
    "Refused",
    "ReplacedSa",
    "Sa",
    "SaCounters",
    "SaRefusedError",
    "Selector",
    "Settings",
    "SoftExpired",
    "StageTimes",
    "__version__",
    "aes_path",
    "measure_aead",
    "stage_clock_ns",
]

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

__version__: str
aes_path: str
"""The processor's instructions for AES-GCM, "none" where it has none."""

class SaRefusedError(ValueError):
    """An SA can't be installed or replaced: the arguments are the SA's name and the reason."""

    args: tuple[str, str]

def measure_aead(provider: str, suite: str, size: int, packets: int) -> float:
    """Seal `packets` packets of `size` bytes with a random key; nanoseconds a packet.

    `provider` is "openssl", "aws-lc" or "af-alg"; 1 to 65535 bytes (61440 by AF_ALG), 1 to 1000000
    packets, 4 GiB in all. Raises ValueError for a provider, suite or number that can't be, and for
    a wrong answer by AF_ALG; OSError where the kernel refuses.
    """

def stage_clock_ns() -> float:
    """Nanoseconds of one read of the clock that measures the stages."""

@final
class Mode:
    """The part of a packet that ESP protects: all of it, or its payload."""

    TUNNEL: ClassVar[Mode]
    TRANSPORT: ClassVar[Mode]

@final
class Encapsulation:
    """Encapsulation of ESP: in UDP, or directly in IP as protocol 50."""

    UDP: ClassVar[Encapsulation]
    NONE: ClassVar[Encapsulation]

@final
class Direction:
    """The way that an SA or a packet goes, seen from this gateway."""

    OUTBOUND: ClassVar[Direction]
    INBOUND: ClassVar[Direction]

@final
class PolicyAction:
    """The fate of a packet that a policy matches."""

    PROTECT: ClassVar[PolicyAction]
    BYPASS: ClassVar[PolicyAction]
    DISCARD: ClassVar[PolicyAction]

@final
class Offloads:
    """The offloads that are wanted; each is used where the kernel has it."""

    def __new__(
        cls, *, tso: bool, uso: bool, udp_gso: bool, udp_gro: bool, merge: bool
    ) -> Offloads: ...

@final
class Settings:
    """The settings of an engine, fixed when it starts.

    `provider` is "auto" or a library's name, `af_alg` the names of the suites that the kernel seals
    and opens as long as it can, `workers` None for the processors that the process may use.
    `low_latency_ms` is the time after its last packet for which a worker keeps processors out of
    idle states, None for never.
    """

    def __new__(
        cls,
        *,
        interface: str,
        port: int,
        fwmark: int,
        min_mtu: int,
        workers: int | None,
        pin_workers: bool,
        low_latency_ms: int | None,
        provider: str,
        af_alg: Sequence[str],
        offloads: Offloads,
    ) -> Settings: ...

@final
class OuterSocket:
    """One outer socket of the gateway: its local address, and how ESP travels through it."""

    def __new__(cls, address: _Address, encapsulation: Encapsulation) -> OuterSocket: ...

@final
class PortRange:
    """Ports `first` to `last`, both included."""

    def __new__(cls, first: int, last: int) -> PortRange: ...

@final
class Selector:
    """Inner packets that an SA carries or a policy is about; None is any."""

    def __new__(
        cls,
        local: _Network,
        remote: _Network,
        protocol: int | None,
        local_port: PortRange | None,
        remote_port: PortRange | None,
    ) -> Selector: ...

@final
class Policy:
    """One entry of the SPD; `sas` are the names of a protect policy's outbound SAs."""

    def __new__(
        cls,
        name: str,
        action: PolicyAction,
        selectors: Sequence[Selector],
        sas: Sequence[str],
    ) -> Policy: ...

@final
class Sa:
    """One SA as it is wanted. `keymat` is key and salt; nothing gives them back."""

    def __new__(
        cls,
        *,
        name: str,
        spi: int,
        suite: str,
        keymat: bytes,
        mode: Mode,
        encapsulation: Encapsulation,
        local: _Address,
        remote: _Address,
        remote_port: int,
        local_original: _Address | None,
        remote_original: _Address | None,
        selectors: Sequence[Selector],
        esn: bool,
        replay_window: int,
        pair: str | None,
        tunnel: str | None,
        lane: int | None,
    ) -> Sa: ...

@final
class Lease:
    """Sequence numbers `first` to `end - 1`."""

    def __new__(cls, first: int, end: int) -> Lease: ...

@final
class OutboundSa:
    """An outbound SA that begins at its lease's first number."""

    def __new__(cls, sa: Sa, lease: Lease) -> OutboundSa: ...

@final
class InboundSa:
    """An inbound SA whose window treats every number up to `highest_seq` as seen.

    Numbers up to `fence` don't tell where a peer is that may be anywhere; the first above
    `notice_at` is reported.
    """

    def __new__(cls, sa: Sa, highest_seq: int, fence: int, notice_at: int) -> InboundSa: ...

@final
class ReplacedSa:
    """The present name and the direction of an SA, and the SA with the same key it becomes."""

    def __new__(cls, name: str, direction: Direction, sa: Sa) -> ReplacedSa: ...

@final
class Counters:
    """Counters of packets without an SA; `packets` are keepalives, authentic ones included."""

    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def drops(self) -> dict[str, int]: ...

@final
class SaCounters:
    """Counters of one SA.

    `seq` is the next number of an outbound SA and the highest accepted one of an inbound SA,
    `lease_end` the first number behind the lease, 0 for an inbound SA. `remote` and `remote_port`
    are the peer's present address.
    """

    @property
    def name(self) -> str: ...
    @property
    def direction(self) -> Direction: ...
    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def drops(self) -> dict[str, int]: ...
    @property
    def seq(self) -> int: ...
    @property
    def lease_end(self) -> int: ...
    @property
    def remote(self) -> _Address: ...
    @property
    def remote_port(self) -> int: ...

@final
class Refused:
    """A sample of the packets dropped for `reason`, in `sa` where they have one.

    An outer packet has no destination, an inner one no `spi`; what has no port has port 0.
    """

    @property
    def reason(self) -> str: ...
    @property
    def sa(self) -> str | None: ...
    @property
    def source(self) -> _Address: ...
    @property
    def source_port(self) -> int: ...
    @property
    def destination(self) -> _Address | None: ...
    @property
    def destination_port(self) -> int: ...
    @property
    def protocol(self) -> int: ...
    @property
    def spi(self) -> int | None: ...

@final
class Opening:
    """The first packet of a flow that came through `sa` and asks for an answer."""

    @property
    def sa(self) -> str: ...
    @property
    def source(self) -> _Address: ...
    @property
    def destination(self) -> _Address: ...
    @property
    def protocol(self) -> int: ...
    @property
    def destination_port(self) -> int: ...

@final
class StageTimes:
    """One worker's sums of the profiles since its start.

    `ns` has the nanoseconds of each stage by its name; `packets_out` were read from the TUN, those
    of super-packets included, `packets_in` are datagrams; `clock_reads` are those of the clock.
    """

    @property
    def ns(self) -> dict[str, int]: ...
    @property
    def packets_out(self) -> int: ...
    @property
    def packets_in(self) -> int: ...
    @property
    def clock_reads(self) -> int: ...

@final
class LaneStatus:
    """State of the lanes' steering: inbound SPIs by lane (`steered`) or modulo the workers.

    `listed` counts the SPIs in force in the kernel's list, 0 unless `steered`; `laned` the inbound
    SAs that have a lane, those that a rekey has replaced and that still receive included, of which
    at most `limit` can be listed. `refused` is the kernel's reason for refusing the list.
    `priority` is the nice value of lane 0's worker, None if it is that of the others,
    `priority_refused` the kernel's reason.
    """

    @property
    def steered(self) -> bool: ...
    @property
    def listed(self) -> int: ...
    @property
    def laned(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def refused(self) -> str | None: ...
    @property
    def priority(self) -> int | None: ...
    @property
    def priority_refused(self) -> str | None: ...

@final
class LatencyStatus:
    """State of the requests for a short latency: `held` by a worker, the errno of a refused one."""

    @property
    def held(self) -> bool: ...
    @property
    def refused(self) -> int | None: ...

@final
class OffloadStatus:
    """State of one offload; `why` is the reason that it is unused or used in part."""

    @property
    def in_use(self) -> bool: ...
    @property
    def why(self) -> str: ...

@final
class LeaseLow:
    """Half of an outbound SA's lease is used."""

    __match_args__: ClassVar[tuple[Literal["sa"]]]
    def __new__(cls, sa: str) -> LeaseLow: ...
    @property
    def sa(self) -> str: ...

@final
class SoftExpired:
    """An eighth of an SA's sequence numbers is left."""

    __match_args__: ClassVar[tuple[Literal["sa"]]]
    def __new__(cls, sa: str) -> SoftExpired: ...
    @property
    def sa(self) -> str: ...

@final
class HardExpired:
    """An SA has no sequence number left."""

    __match_args__: ClassVar[tuple[Literal["sa"]]]
    def __new__(cls, sa: str) -> HardExpired: ...
    @property
    def sa(self) -> str: ...

@final
class PeerAddressChanged:
    """An inbound SA's newest authenticated packet came from elsewhere: replies go there now."""

    __match_args__: ClassVar[tuple[Literal["sa"], Literal["address"], Literal["port"]]]
    def __new__(cls, sa: str, address: _Address, port: int) -> PeerAddressChanged: ...
    @property
    def sa(self) -> str: ...
    @property
    def address(self) -> _Address: ...
    @property
    def port(self) -> int: ...

@final
class CeilingNear:
    """An inbound SA has received the number `highest`, above the one that is watched."""

    __match_args__: ClassVar[tuple[Literal["sa"], Literal["highest"]]]
    def __new__(cls, sa: str, highest: int) -> CeilingNear: ...
    @property
    def sa(self) -> str: ...
    @property
    def highest(self) -> int: ...

@final
class PathMtuChanged:
    """The kernel knows the path MTU to `remote`: bytes, outer IP header included."""

    __match_args__: ClassVar[tuple[Literal["remote"], Literal["mtu"]]]
    def __new__(cls, remote: _Address, mtu: int) -> PathMtuChanged: ...
    @property
    def remote(self) -> _Address: ...
    @property
    def mtu(self) -> int: ...

@final
class GsoRefused:
    """The kernel refuses GSO sends to `remote`, with the errno `error`: packets go singly now."""

    __match_args__: ClassVar[tuple[Literal["remote"], Literal["error"]]]
    def __new__(cls, remote: _Address, error: str) -> GsoRefused: ...
    @property
    def remote(self) -> _Address: ...
    @property
    def error(self) -> str: ...

@final
class MergeRefused:
    """The TUN refuses super-packets of `kind`, TCP or UDP: such packets are written singly now."""

    __match_args__: ClassVar[tuple[Literal["kind"]]]
    def __new__(cls, kind: str) -> MergeRefused: ...
    @property
    def kind(self) -> str: ...

@final
class AfAlgLost:
    """AF_ALG has failed and is not used any more; every SA goes on in the library."""

    __match_args__: ClassVar[tuple[Literal["reason"]]]
    def __new__(cls, reason: str) -> AfAlgLost: ...
    @property
    def reason(self) -> str: ...

@final
class EngineFailed:
    """A worker can't go on."""

    __match_args__: ClassVar[tuple[Literal["reason"]]]
    def __new__(cls, reason: str) -> EngineFailed: ...
    @property
    def reason(self) -> str: ...

_Event = (
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

@final
class NativeEngine:
    """The data plane: a TUN device with worker threads, which end with the object.

    Methods that name an SA raise ValueError where there is no such SA, and all that ask the kernel
    for something raise OSError where it refuses.
    """

    def __new__(cls, settings: Settings) -> NativeEngine:
        """Create the TUN device, with one queue."""

    def start(self) -> None:
        """Open a queue for each worker and start the workers; called once."""

    def queues(self) -> int:
        """Return the number of open queues of the TUN device."""

    def workers(self) -> int:
        """Return the number of workers."""

    def offloads(self) -> dict[str, OffloadStatus]:
        """Return the offloads by their names in the configuration."""
    def latency(self) -> LatencyStatus:
        """Return the state of the requests for a short latency."""

    def providers(self) -> dict[str, str]:
        """Return what seals and opens the suites in use, by their names."""

    def event_fd(self) -> int:
        """Return a descriptor that is readable while events wait."""

    def take_events(self) -> list[_Event]:
        """Return the events that wait, and forget them."""

    def set_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        """Open the outer sockets that are missing, then close those not named."""

    def change_sas(
        self,
        outbound: Sequence[OutboundSa],
        inbound: Sequence[InboundSa],
        replaced: Sequence[ReplacedSa],
    ) -> None:
        """Add and replace SAs in one step, all or none. Raises SaRefusedError."""

    def remove(self, names: Sequence[str]) -> list[SaCounters]:
        """Forget SAs in one step, all or none; the final counters are in the order of `names`."""

    def sent(self, name: str) -> int:
        """Return the packets that an outbound SA has sent."""

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Put a new SPD in place in one step, in the order given."""

    def extend_lease(self, name: str, lease: Lease) -> None:
        """Give an outbound SA more sequence numbers, used after those it has."""

    def watch_numbers(self, notices: Mapping[str, int]) -> None:
        """Report the next number of each of these inbound SAs above the given one."""

    def place_peer(self, name: str, address: _Address, port: int) -> None:
        """Send to this address until the peer of an SA is heard, unless its address is known."""

    def keepalive(self, name: str) -> None:
        """Send a NAT keepalive for an outbound SA."""

    def dummy(self, name: str) -> None:
        """Send a dummy packet by an outbound SA; nothing where there is no such SA."""

    def sas(self) -> list[SaCounters]:
        """Return the counters of every SA."""

    def advanced_replay_floors(self) -> dict[str, int]:
        """Return the inbound SAs whose windows advanced since the last call, and how far."""

    def refused(self) -> list[Refused]:
        """Return samples of the packets dropped since the last call."""

    def openings(self) -> list[Opening]:
        """Return samples of the flows begun since the last call that ask for an answer."""

    def forget_flows(self) -> None:
        """Treat every inbound flow as new."""

    def lane_status(self) -> LaneStatus:
        """The state of the lanes' steering."""
    def lane_flows(self) -> dict[str, int]:
        """The outbound SAs with a lane, each with the flows that it carried in the last 10 s."""
    def relay_ike(self, socket: int | None) -> None:
        """Pass IKE datagrams to a copy of this unix datagram socket, or drop them again."""
    def send_ike(self, source: _Address, destination: _Address, port: int, message: bytes) -> None:
        """Send an IKE message, behind its marker, from the UDP socket of an outer address."""
    def ike_passed(self) -> int:
        """The IKE datagrams that were passed on."""
    def start_profile(self) -> None:
        """Have the turns that begin from now on measured by stage."""
    def stop_profile(self) -> None:
        """Have no further turn measured."""
    def stage_times(self) -> list[StageTimes]:
        """Return the sums of each worker."""
    def bulk_on_lane0(self) -> int:
        """The outbound bulk packets that lane 0's worker sealed."""
    def rest(self, direction: Direction) -> Counters:
        """Return the counters of packets without an SA."""
