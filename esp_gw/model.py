"""Value types shared by all of esp_gw: frozen, validated by their producers, without I/O.

The terms are those of the RFCs: SA, SPI, selector (RFC 4301), suite, ICV, ESN (RFC 4303, RFC 4106).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from esp_gw.protocol import SALT_LEN, TEXT_OFFSET, TRAILER_LEN, UDP_ENCAP_PORT

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

DEFAULT_REPLAY_WINDOW = 4096
MIN_REPLAY_WINDOW = 64
MAX_REPLAY_WINDOW = 8192
MAX_SAS = 64
"""Largest number of SAs of one tunnel in each direction: the workers of the largest machines."""

LAST_TABLE = 32764
"""Highest routing table usable by the gateway. With a higher one its rules would follow the
kernel's rule for the main table (32766), and protected traffic would leave in the clear."""
RESERVED_TABLES = {252: "compat", 253: "default", 254: "main", 255: "local"}
"""Routing tables reserved by the system (rt_tables in iproute2)."""


class Mode(enum.StrEnum):
    """Mode of an SA (RFC 4301 4.1): ESP protects a whole IP packet, or the payload of one."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"


class Encapsulation(enum.StrEnum):
    """Encapsulation of ESP: in UDP (RFC 3948), or none, as IP protocol 50."""

    UDP = "udp"
    NONE = "none"


class Direction(enum.StrEnum):
    """Direction of the packets of an SA, seen from this gateway."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Action(enum.StrEnum):
    """Action of a policy on a packet that it matches (RFC 4301 4.4.1)."""

    PROTECT = "protect"
    BYPASS = "bypass"
    DISCARD = "discard"


class Origin(enum.StrEnum):
    """Origin of an SA or a policy: a configuration file, the CLI, or an IKE daemon's session."""

    CONFIG = "config"
    CLI = "cli"
    IKE = "ike"


class TunnelState(enum.StrEnum):
    """State of a tunnel.

    `up`: an authentic packet came within the liveness time. `quiet`: none did, and none had to.
    `down`: the peer sends keepalives or should, and nothing authentic comes. `failing`: packets
    come and all are refused, or none of ours can be sent.
    """

    UP = "up"
    QUIET = "quiet"
    DOWN = "down"
    FAILING = "failing"


class DropReason(enum.StrEnum):
    """Reason for dropping a packet; each has a counter, for each SA and in total."""

    # Outbound, roughly in the order of the path.
    MALFORMED_INNER = "malformed-inner"
    TOO_MANY_SEGMENTS = "too-many-segments"
    NO_POLICY = "no-policy"
    POLICY_DISCARD = "policy-discard"
    POLICY_BYPASS = "policy-bypass"
    NO_SA = "no-sa"
    NO_PEER = "no-peer"
    FRAGMENT = "fragment"
    UNSUPPORTED_HEADER = "unsupported-header"
    LEASE_EXHAUSTED = "lease-exhausted"
    SEQ_EXHAUSTED = "seq-exhausted"
    TOO_BIG = "too-big"
    QUEUE_FULL = "queue-full"
    QUEUE_TIMEOUT = "queue-timeout"
    SEND_ERROR = "send-error"
    # Inbound, roughly in the order of the path.
    SOCKET_OVERFLOW = "socket-overflow"
    TOO_SHORT = "too-short"
    TRUNCATED = "truncated"
    IKE_DATAGRAM = "ike-datagram"
    UNKNOWN_SPI = "unknown-spi"
    WRONG_ENCAPSULATION = "wrong-encapsulation"
    REPLAY_OLD = "replay-old"
    REPLAY_DUPLICATE = "replay-duplicate"
    AUTH_FAILED = "auth-failed"
    BAD_PADDING = "bad-padding"
    DUMMY = "dummy"
    BAD_NEXT_HEADER = "bad-next-header"
    SELECTOR_MISMATCH = "selector-mismatch"
    ECN_NOT_ECT = "ecn-not-ect"
    TUN_QUEUE_FULL = "tun-queue-full"
    TUN_ERROR = "tun-error"


@dataclass(frozen=True, slots=True)
class Suite:
    """An AEAD with its sizes in bytes (RFC 4106, 7634, 4543); all have a salt of 4, an IV of 8."""

    name: str
    cipher: str
    key_len: int
    icv_len: int

    @property
    def is_readable(self) -> bool:
        """True if the traffic is only authenticated, not encrypted: it can be read on the path."""
        return self.cipher == AES_GMAC

    @property
    def keymat_len(self) -> int:
        """Bytes of key and salt together, as in a key file."""
        return self.key_len + SALT_LEN

    def esp_len(self, payload_len: int) -> int:
        """Bytes of an ESP packet, from the SPI to the ICV, with `payload_len` bytes of payload."""
        text_len = (payload_len + TRAILER_LEN + 3) & ~3
        return TEXT_OFFSET + text_len + self.icv_len

    def max_payload(self, esp_len: int) -> int:
        """Bytes of the largest payload whose ESP packet is not longer than `esp_len`.

        Negative if not even an empty payload fits.
        """
        text_len = (esp_len - TEXT_OFFSET - self.icv_len) & ~3
        return text_len - TRAILER_LEN

    def __str__(self) -> str:
        return self.name


AES_GCM = "aes-gcm"
CHACHA20_POLY1305 = "chacha20-poly1305"
AES_GMAC = "aes-gmac"

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        *(
            Suite(f"aes{bits}gcm{icv}", AES_GCM, bits // 8, icv)
            for bits in (256, 192, 128)
            for icv in (16, 12, 8)
        ),
        Suite("chacha20poly1305", CHACHA20_POLY1305, 32, 16),
        Suite("aes256gmac", AES_GMAC, 32, 16),
    )
}
DEFAULT_SUITE = SUITES["aes256gcm16"]


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """The secret of one SA: cipher key and 4-byte salt, never shown by repr or str."""

    key: bytes = field(repr=False)
    salt: bytes = field(repr=False)

    @classmethod
    def from_bytes(cls, keymat: bytes) -> KeyMaterial:
        """Split `key || salt`, the order of RFC 4106 8.1 and of `ip xfrm`."""
        return cls(keymat[:-SALT_LEN], keymat[-SALT_LEN:])

    def to_bytes(self) -> bytes:
        """The key followed by the salt."""
        return self.key + self.salt


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first` to `last`, inclusive."""

    first: int = 0
    last: int = 65535

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Selector:
    """Inner traffic as seen from this gateway, in both directions (RFC 4301 4.4.1.1).

    A `protocol` or port range of None matches any. A port range matches only packets that carry
    ports: TCP, UDP, UDP-Lite, SCTP and DCCP, unfragmented or the first fragment.
    """

    local: IPNetwork
    remote: IPNetwork
    protocol: int | None = None
    local_port: PortRange | None = None
    remote_port: PortRange | None = None


@dataclass(frozen=True, slots=True)
class Sa:
    """The desired parameters of one security association; its run-time state is in the engine.

    `local` and `remote` are the outer addresses, `remote_port` the peer's UDP port. A `remote` that
    is unspecified without a `remote_name` is learned from the peer. `selectors` define the inner
    packets that the SA may carry. `keepalive` is the interval of NAT keepalives (RFC 3948 4) of an
    outbound SA in seconds, 0 for none; `liveness` is that of its authentic keepalives, dummy
    packets (RFC 4303 2.6). `pair` names the SA of the opposite direction. `local_original` and
    `remote_original` are the addresses that the peer's inner packets had before a NAT, in transport
    mode (RFC 3948 3.1.2); None where it has changed none. `used_seq` is the highest sequence number
    that another program may have used with the key, 0 for none. `lane` is the SA's position among
    those of its tunnel and direction, the same at both ends; None for an SA that is the only one.
    """

    name: str
    direction: Direction
    spi: int
    suite: Suite
    keymat: KeyMaterial
    mode: Mode
    encapsulation: Encapsulation
    local: IPAddress
    remote: IPAddress
    selectors: tuple[Selector, ...]
    remote_port: int = UDP_ENCAP_PORT
    esn: bool = True
    replay_window: int = DEFAULT_REPLAY_WINDOW
    keepalive: int = 0
    liveness: int = 0
    remote_name: str | None = None
    local_original: IPAddress | None = None
    remote_original: IPAddress | None = None
    tunnel: str | None = None
    pair: str | None = None
    origin: Origin = Origin.CONFIG
    used_seq: int = 0
    lane: int | None = None

    @property
    def learns_peer(self) -> bool:
        """True if the peer may be anywhere: its first authentic packet tells where."""
        return self.remote.is_unspecified and self.remote_name is None

    @property
    def follows_peer(self) -> bool:
        """True if the peer's newest packet tells where it is now (RFC 7296 2.23)."""
        return self.encapsulation is Encapsulation.UDP or self.learns_peer

    @property
    def last_seq(self) -> int:
        """The highest sequence number that the SA may send: 64 bits with ESN, 32 without.

        An SA begun by another program stays within 32 bits, where it does not meet the IVs of that
        program (docs/explanation/safety.md).
        """
        return 2**64 - 1 if self.esn and not self.used_seq else 2**32 - 1


def by_pair(sas: Sequence[Sa]) -> Iterator[tuple[Sa, ...]]:
    """The SAs of no tunnel, each with its pair; of the two, only one may name the other."""
    named = {sa.name: sa for sa in sas if sa.tunnel is None}
    back = {sa.pair: sa.name for sa in named.values() if sa.pair is not None}
    while named:
        sa = named.pop(next(iter(named)))
        pair = named.pop(sa.pair or back.get(sa.name, ""), None)
        yield (sa,) if pair is None else (sa, pair)


@dataclass(frozen=True, slots=True)
class Policy:
    """One entry of the SPD; `sas` names the outbound SAs of a protect policy, in order of lanes.

    A `standing` one of IKE is closed whatever becomes of SAs, also from a boot on.
    """

    name: str
    action: Action
    selectors: tuple[Selector, ...]
    sas: tuple[str, ...] = ()
    tunnel: str | None = None
    origin: Origin = Origin.CONFIG
    standing: bool = False


def named_pairs(
    sas: Sequence[Sa], policies: Sequence[Policy]
) -> Iterator[tuple[str, tuple[Sa, ...]]]:
    """The SAs of no tunnel as `by_pair` has them, each pair with its name.

    It is that of its first SA, but of a tunnel that the CLI added its own: such a tunnel is a
    policy of the CLI with a pair of SAs that have the policy's name, and /out and /in behind it.
    """
    names = {policy.sas: policy.name for policy in policies if policy.origin is Origin.CLI}
    for pair in by_pair(sas):
        outbound = tuple(sa.name for sa in pair if sa.direction is Direction.OUTBOUND)
        name = names.get(outbound, "")
        is_tunnel = {sa.name for sa in pair} == {f"{name}/out", f"{name}/in"}
        yield (name if is_tunnel else pair[0].name), pair


@dataclass(frozen=True, slots=True)
class Lease:
    """Sequence numbers `first` to `end - 1`, on disk as used before the first of them is used."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Reception:
    """The numbers received under a key, as far as the ledger knows.

    Every number up to `floor` counts as seen. Numbers up to `fence` may have been received before
    this process, which is more than those up to the floor after a crash. No number above `ceiling`
    is received before a higher ceiling is on disk.
    """

    floor: int = 0
    fence: int = 0
    ceiling: int = 0


ENGINES = ("auto", "python", "native")
"""Values of `gateway.engine`."""

PROVIDER_AUTO = "auto"
OPENSSL = "openssl"
AWS_LC = "aws-lc"
AF_ALG = "af-alg"
PROVIDERS = (PROVIDER_AUTO, OPENSSL, AWS_LC)
"""Values of `crypto.provider`; the python engine has only OpenSSL."""
NO_AES = "none"
"""Reported instead of AES instructions for a processor without any."""

ANY = "any"
"""Value of `remote`: the peer may be anywhere, and is learned from its first authentic packet."""
AUTO, OFF = "auto", "off"
"""Values of `gateway.firewall` and `gateway.source_check`."""

AF_ALG_AUTO = "auto"
AF_ALG_ON = "on"
AF_ALG_OFF = "off"
AF_ALG_CHOICES = (AF_ALG_AUTO, AF_ALG_ON, AF_ALG_OFF)

NORMAL, LOW = "normal", "low"
LATENCIES = (NORMAL, LOW)
"""The choices of the wake-up latency of idle processors."""
"""Values of `crypto.offload`: use AF_ALG of the kernel if it is faster, always, or never."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel of the configuration, and the names of the SAs and policies it expands to."""

    name: str
    mode: Mode
    encapsulation: Encapsulation
    suite: Suite
    local: IPAddress
    remote: IPAddress
    local_ts: tuple[IPNetwork, ...]
    remote_ts: tuple[IPNetwork, ...]
    sas: tuple[str, ...]
    policies: tuple[str, ...]
    remote_name: str | None = None

    @property
    def learns_peer(self) -> bool:
        """True if the peer may be anywhere: its first authentic packet tells where."""
        return self.remote.is_unspecified and self.remote_name is None
