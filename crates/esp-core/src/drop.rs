//! Drop reasons.

use std::fmt;

macro_rules! reasons {
    ($($variant:ident $name:literal $doc:literal)*) => {
        /// Reason that a packet was dropped; each has a counter, for each SA and in total.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $doc] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// Number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in counters and `status`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    MalformedInner "malformed-inner" "The inner packet contradicts itself or is cut off."
    TooManySegments "too-many-segments" "A super-packet of more segments than any sane sender makes."
    NoPolicy "no-policy" "No policy matches the packet."
    PolicyDiscard "policy-discard" "A discard policy matches it."
    PolicyBypass "policy-bypass" "A bypass policy matches it, but a TUN packet can't go around the tunnel."
    NoSa "no-sa" "The policy's SA is not installed."
    NoPeer "no-peer" "The SA's peer may be anywhere, and nothing authentic has come from it yet."
    Fragment "fragment" "A fragment that never became part of a whole datagram."
    UnsupportedHeader "unsupported-header" "Transport mode can't carry its options or extension headers."
    LeaseExhausted "lease-exhausted" "The SA's leased sequence numbers are used up."
    SeqExhausted "seq-exhausted" "The SA's last sequence number is used."
    TooBig "too-big" "The ESP packet is larger than the path MTU."
    QueueFull "queue-full" "The socket is full, and newer packets took its place in the queue."
    QueueTimeout "queue-timeout" "It waited too long for a full socket."
    SendError "send-error" "The packet could not be sent."
    SocketOverflow "socket-overflow" "The kernel dropped it at an outer socket: no room, or a wrong checksum."
    TooShort "too-short" "Too few bytes for an ESP packet."
    Truncated "truncated" "A datagram longer than any packet can be."
    IkeDatagram "ike-datagram" "A datagram for the key-management port (RFC 3948 2.2)."
    UnknownSpi "unknown-spi" "No inbound SA has the SPI."
    WrongEncapsulation "wrong-encapsulation" "The encapsulation or outer IP version is not the SA's."
    ReplayOld "replay-old" "Its number is below the replay window."
    ReplayDuplicate "replay-duplicate" "Its number was seen already."
    AuthFailed "auth-failed" "The ICV doesn't hold."
    BadPadding "bad-padding" "The padding is not 1, 2, 3, ... (RFC 4303 2.4)."
    Dummy "dummy" "A dummy packet (RFC 4303 2.6)."
    BadNextHeader "bad-next-header" "Not an IP packet, in tunnel mode."
    SelectorMismatch "selector-mismatch" "The SA's selectors don't allow the packet (RFC 4301 5.2)."
    EcnNotEct "ecn-not-ect" "Congestion experienced by a flow that knows no ECN (RFC 6040 4.2)."
    TunQueueFull "tun-queue-full" "The TUN takes no more at the moment."
    TunError "tun-error" "The TUN refused the packet."
}

impl DropReason {
    /// Index of the reason's counter.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
