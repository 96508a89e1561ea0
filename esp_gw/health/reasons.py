"""Drop reasons in words: what packets they are, the usual cause, and what to do.

docs/reference/drop-reasons.md says more of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from esp_gw.model import DropReason
from esp_gw.network.firewall import FirewallDrop
from esp_gw.network.link import TUN_OVERFLOW

_COMPARE = "compare 'esp-gw sa show' of both ends"
_NEW_KEYS = "give both ends new keys with 'esp-gw keygen', then run 'esp-gw reload'"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a drop reason: the `packets` that have it, its usual `cause`, the remedy."""

    packets: str
    cause: str
    todo: str = ""


MEANINGS: dict[str, Meaning] = {
    DropReason.MALFORMED_INNER: Meaning(
        "are no IP packets, or contradict their own header",
        "a program here that writes raw packets, or a peer that seals something else",
    ),
    DropReason.TOO_MANY_SEGMENTS: Meaning(
        "are super-packets of more than 1,024 segments", "a guest that writes its own headers"
    ),
    DropReason.NO_POLICY: Meaning(
        "went into the TUN and match no policy",
        "a source outside of local_ts, or a route of another program",
        "'esp-gw explain SRC DST' says which",
    ),
    DropReason.POLICY_DISCARD: Meaning(
        "match a discard policy", "as configured", "'esp-gw policy list' shows it"
    ),
    DropReason.POLICY_BYPASS: Meaning(
        "match a bypass policy and came into the TUN",
        "an 'ip rule' that is missing, or precedes ours",
        "see 'ip rule' and 'esp-gw status'",
    ),
    DropReason.NO_SA: Meaning(
        "match a policy whose SA is not installed",
        "the moment of a reload, or a child that ike has not negotiated",
        "see 'esp-gw sa list'",
    ),
    DropReason.NO_PEER: Meaning(
        "are for a peer with 'remote: any' that nothing authentic has come from",
        "a peer that has not sent yet",
        "let the other end send first",
    ),
    DropReason.FRAGMENT: Meaning(
        "are fragments that never became whole", "a fragment that was lost on the way"
    ),
    DropReason.UNSUPPORTED_HEADER: Meaning(
        "have IP options that transport mode can't carry", "a program that sets them"
    ),
    DropReason.LEASE_EXHAUSTED: Meaning(
        "found the leased sequence numbers used up",
        "a disk that is full, or too slow",
        "see 'df' and 'journalctl -u esp-gw'",
    ),
    DropReason.SEQ_EXHAUSTED: Meaning(
        "come after the last sequence number of their SA", "a key that was used up", _NEW_KEYS
    ),
    DropReason.TOO_BIG: Meaning(
        "are larger than the path takes, and must not be fragmented",
        "the first packets after a path MTU fell; many of them: something ignores ICMP",
        "'esp-gw tunnel ping NAME' says the path MTU; lower 'gateway.mtu', or clamp the MSS",
    ),
    DropReason.QUEUE_FULL: Meaning(
        "found no room in the queue of their outer socket", "more traffic than the link carries"
    ),
    DropReason.QUEUE_TIMEOUT: Meaning(
        "waited for their outer socket for too long", "a link that stalls, or is far too slow"
    ),
    DropReason.SEND_ERROR: Meaning(
        "could not be sent",
        "no route to the peer, a firewall of this host, or a link that is down",
        "see 'ip route get' of the peer",
    ),
    DropReason.SOCKET_OVERFLOW: Meaning(
        "the kernel dropped at an outer socket",
        "more traffic than the processor opens, or a network that damages packets",
    ),
    DropReason.TOO_SHORT: Meaning("are too short for ESP", "something else on the port"),
    DropReason.TRUNCATED: Meaning(
        "are longer than any packet can be", "something else on the port"
    ),
    DropReason.IKE_DATAGRAM: Meaning(
        "are IKE messages, and no IKE daemon takes them here",
        "an IKE daemon at the peer, and none here",
    ),
    DropReason.UNKNOWN_SPI: Meaning(
        "have an SPI of no SA here", "other SPIs at the peer, or an SA that is gone", _COMPARE
    ),
    DropReason.WRONG_ENCAPSULATION: Meaning(
        "came in UDP for an SA without it, or the other way round",
        "another 'encapsulation' at the peer",
        "make it equal at both ends",
    ),
    DropReason.REPLAY_OLD: Meaning(
        "are older than the replay window",
        "reordering on the way, a replay, or a peer that began its numbers anew",
        "a wider 'replay_window' bears more reordering; " + _NEW_KEYS + " after a restart",
    ),
    DropReason.REPLAY_DUPLICATE: Meaning(
        "have a sequence number that was seen", "a duplicate of the network, or a replay"
    ),
    DropReason.AUTH_FAILED: Meaning(
        "have a wrong ICV", "another key, suite or ESN at the peer, or a forgery", _COMPARE
    ),
    DropReason.BAD_PADDING: Meaning("have wrong padding, and a right ICV", "a fault of the peer"),
    DropReason.DUMMY: Meaning("are authentic keepalives", "'liveness' of the peer: no loss"),
    DropReason.BAD_NEXT_HEADER: Meaning(
        "hold no IP packet",
        "transport mode at the peer, tunnel mode here",
        "make 'mode' equal at both ends",
    ),
    DropReason.SELECTOR_MISMATCH: Meaning(
        "came out of an SA that may not carry them",
        "local_ts and remote_ts of both ends that don't mirror each other",
        "make them mirror each other, then run 'esp-gw reload' at both ends",
    ),
    DropReason.ECN_NOT_ECT: Meaning(
        "were marked as congested, and don't do ECN", "a faulty router on the way"
    ),
    DropReason.TUN_QUEUE_FULL: Meaning(
        "were not taken by the TUN device", "a host that is too busy to take its packets"
    ),
    DropReason.TUN_ERROR: Meaning(
        "were refused by the TUN device", "a TUN device that is down", "see 'ip link'"
    ),
    TUN_OVERFLOW: Meaning(
        "found the queues of the TUN device full", "more traffic than the gateway carries"
    ),
    FirewallDrop.CLEARTEXT_OUT: Meaning(
        "would leave in the clear for a protected prefix",
        "a socket bound to a device, or a route or rule of another program",
        "see 'ip rule'; 'esp-gw explain SRC DST' says where they are routed",
    ),
    FirewallDrop.CLEARTEXT_IN: Meaning(
        "came in the clear from a protected prefix",
        "a forgery, or a peer that does not protect what this end protects",
        "compare remote_ts here with local_ts of the peer",
    ),
    FirewallDrop.SPOOFED_SOURCE: Meaning(
        "were for the TUN, from an interface by which their source is not reached",
        "a forgery, or a LAN with several ways to this host",
        "in such a LAN: 'source_check: off' in 'gateway'",
    ),
    FirewallDrop.LOOP: Meaning(
        "came out of a tunnel and would have gone back into it",
        "an address behind both ends that nobody has, or a missing route to a network here",
        "add the route, or narrow the prefixes",
    ),
}
"""The meaning of every reason of an engine, the kernel and the packet filter."""
