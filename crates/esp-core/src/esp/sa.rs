//! Security associations and the state of one that all workers share (RFC 4301 4.4.2.1).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::DropReason;
use crate::esp::aead::{MakeAead, ProviderError, SaAead};
use crate::esp::decap::{Opener, SaOpener};
use crate::esp::encap::{SaSealer, Sealer};
use crate::esp::replay::ReplayWindow;
use crate::esp::seq::{Lease, LeaseError, SeqCounter};
use crate::esp::suite::{SALT_LEN, Suite};
use crate::policy::selector::Selector;
use crate::wire::inner::transport_header;
use crate::wire::{self, AddressChange, Inner};

/// The part of a packet that ESP protects (RFC 4301 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A whole IP packet.
    Tunnel,
    /// The payload of one.
    Transport,
}

/// Encapsulation of ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// In UDP (RFC 3948).
    Udp,
    /// IP protocol 50.
    None,
}

/// Key material of one SA: never shown, zeroed on drop, as is every copy.
#[derive(Clone)]
pub struct KeyMaterial {
    key: Zeroizing<Vec<u8>>,
    salt: Zeroizing<[u8; SALT_LEN]>,
}

impl KeyMaterial {
    /// Splits `key || salt`, the order of RFC 4106 8.1; None if it has another size than the
    /// suite's.
    #[must_use]
    pub fn new(suite: &Suite, keymat: &[u8]) -> Option<Self> {
        let (key, salt) = keymat.split_at_checked(suite.key_len)?;
        Some(Self {
            key: Zeroizing::new(key.to_vec()),
            salt: Zeroizing::new(salt.try_into().ok()?),
        })
    }

    /// The cipher's key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The first four bytes of every nonce.
    #[must_use]
    pub fn salt(&self) -> [u8; SALT_LEN] {
        *self.salt
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(..)")
    }
}

/// Specification of one SA; state that changes is in `OutboundSa` and `InboundSa`.
#[derive(Clone, Debug)]
pub struct SaSpec {
    /// The SA's name.
    pub name: Arc<str>,
    /// 256 or more (RFC 4303 2.1).
    pub spi: u32,
    /// The AEAD.
    pub suite: &'static Suite,
    /// Key and salt.
    pub keymat: KeyMaterial,
    /// Tunnel or transport.
    pub mode: Mode,
    /// UDP or protocol 50.
    pub encapsulation: Encapsulation,
    /// The outer address on this side.
    pub local: IpAddr,
    /// The outer address of the peer; unspecified if it may be anywhere.
    pub remote: IpAddr,
    /// The peer's UDP port.
    pub remote_port: u16,
    /// The destination of the peer's inner packets, in transport mode through a NAT.
    pub local_original: Option<IpAddr>,
    /// The source of the peer's inner packets, in transport mode through a NAT.
    pub remote_original: Option<IpAddr>,
    /// Selectors of the inner packets that the SA may carry; one must match.
    pub selectors: Vec<Selector>,
    /// True if sequence numbers have 64 bits (RFC 4303 2.2.1).
    pub esn: bool,
    /// Numbers in the anti-replay window, 64 to 8192.
    pub replay_window: u16,
    /// The SA of the other direction.
    pub pair: Option<Arc<str>>,
    /// The tunnel whose SAs share one peer address.
    pub tunnel: Option<Arc<str>>,
    /// Its position in the tunnel's list; None if it is the only SA of its direction.
    pub lane: Option<u8>,
}

impl SaSpec {
    /// The highest sequence number that the SA may use.
    #[must_use]
    pub const fn last_seq(&self) -> u64 {
        if self.esn { u64::MAX } else { u32::MAX as u64 }
    }

    /// True if the peer may be anywhere: its first authentic packet tells where.
    #[must_use]
    pub const fn learns_peer(&self) -> bool {
        self.remote.is_unspecified()
    }

    /// True if the peer's newest packet tells where it is now (RFC 7296 2.23).
    #[must_use]
    pub fn follows_peer(&self) -> bool {
        self.encapsulation == Encapsulation::Udp || self.learns_peer()
    }

    /// A peer's address as it is shown: a raw socket has no port.
    #[must_use]
    pub const fn shown(&self, peer: SocketAddr) -> SocketAddr {
        let port = peer.port();
        SocketAddr::new(peer.ip(), if port == 0 { self.remote_port } else { port })
    }

    /// True if the key is the same, and the suite that it is used with.
    #[must_use]
    pub fn has_key_of(&self, other: &Self) -> bool {
        let (mine, others) = (&self.keymat, &other.keymat);
        self.suite.name == other.suite.name
            && mine.key() == others.key()
            && mine.salt() == others.salt()
    }

    fn aead(&self, maker: &impl MakeAead) -> Result<SaAead, ProviderError> {
        maker.make(self.suite, self.keymat.key())
    }

    /// Makes an opener for packets that were sealed with the SA's key.
    ///
    /// # Errors
    /// `ProviderError` if there is no AEAD for the suite.
    pub fn opener(&self, maker: &impl MakeAead) -> Result<SaOpener, ProviderError> {
        let (suite, salt, esn) = (self.suite, self.keymat.salt(), self.esn);
        Ok(match self.aead(maker)? {
            SaAead::Plain(aead) => SaOpener::Plain(Opener::new(aead, suite, salt, esn)),
            SaAead::Batched(aead) => SaOpener::Batched(Opener::new(aead, suite, salt, esn)),
        })
    }
}

/// An outbound SA.
#[derive(Debug)]
pub struct OutboundSa {
    /// The SA's specification.
    pub spec: SaSpec,
    /// Its sequence numbers.
    pub seq: SeqCounter,
}

impl OutboundSa {
    /// An SA that begins at the lease's first sequence number.
    ///
    /// # Errors
    /// `LeaseError` for a lease that begins at 0 or ends before it begins.
    pub fn new(spec: SaSpec, lease: Lease) -> Result<Self, LeaseError> {
        let seq = SeqCounter::new(spec.last_seq(), lease)?;
        Ok(Self { spec, seq })
    }

    /// An SA with the same key that replaces this one, and goes on counting.
    #[must_use]
    pub fn continued(&self, spec: SaSpec) -> Self {
        let seq = self.seq.continued(spec.last_seq());
        Self { spec, seq }
    }

    /// True if the SA may carry an outbound packet.
    #[must_use]
    pub fn carries(&self, inner: &Inner) -> bool {
        self.spec
            .selectors
            .iter()
            .any(|selector| selector.matches_outbound(inner))
    }

    /// Makes the sealer of one worker.
    ///
    /// # Errors
    /// `ProviderError` if there is no AEAD for the suite.
    pub fn sealer(&self, maker: &impl MakeAead) -> Result<SaSealer, ProviderError> {
        let SaSpec {
            spi, suite, esn, ..
        } = self.spec;
        let salt = self.spec.keymat.salt();
        Ok(match self.spec.aead(maker)? {
            SaAead::Plain(aead) => SaSealer::Plain(Sealer::new(aead, suite, spi, salt, esn)),
            SaAead::Batched(aead) => SaSealer::Batched(Sealer::new(aead, suite, spi, salt, esn)),
        })
    }
}

/// An inbound SA.
#[derive(Debug)]
pub struct InboundSa {
    /// The SA's specification.
    pub spec: SaSpec,
    /// Its anti-replay window.
    pub window: ReplayWindow,
    /// The change that a NAT has made to the inner packets of transport mode.
    readdressed: Option<AddressChange>,
}

impl InboundSa {
    /// An SA whose window treats every number up to `highest_seq` as seen.
    #[must_use]
    pub fn new(spec: SaSpec, highest_seq: u64) -> Self {
        let window = ReplayWindow::new(spec.replay_window, highest_seq);
        Self::with(spec, window)
    }

    /// An SA with the same key that replaces this one, and has seen the same numbers. They are
    /// compared in 64 bits: a packet that was accepted with ESN isn't accepted without.
    #[must_use]
    pub fn continued(&self, spec: SaSpec) -> Self {
        let window = self.window.continued(spec.replay_window);
        Self::with(spec, window)
    }

    /// The same SA with a window of one ring.
    #[must_use]
    pub fn settled(&self) -> Self {
        Self {
            spec: self.spec.clone(),
            window: self.window.settled(),
            readdressed: self.readdressed,
        }
    }

    fn with(spec: SaSpec, window: ReplayWindow) -> Self {
        let after = [spec.remote, spec.local];
        let before = [
            spec.remote_original.unwrap_or(spec.remote),
            spec.local_original.unwrap_or(spec.local),
        ];
        Self {
            readdressed: AddressChange::new(before, after),
            spec,
            window,
        }
    }

    /// Makes the payload of transport mode at the end of `packet` an IP packet, and mends its
    /// checksum where a NAT has broken it (RFC 3948 3.1.2).
    ///
    /// The addresses are the SA's, not the datagram's: the selectors and the sockets of this host
    /// know no others, wherever the peer has moved.
    ///
    /// # Errors
    /// `MalformedInner` if the packet would be longer than 65535 bytes, or has a broken header.
    pub fn transport_packet(
        &self,
        packet: &mut [u8],
        next_header: u8,
        tos: u8,
    ) -> Result<(), DropReason> {
        let SaSpec { remote, local, .. } = self.spec;
        transport_header(packet, remote, local, next_header, tos)?;
        self.readdressed
            .map_or(Ok(()), |change| change.mend(packet))
    }

    /// True if the SA may carry a packet that was opened with it (RFC 4301 5.2).
    #[must_use]
    pub fn carries(&self, inner: &Inner) -> bool {
        self.spec
            .selectors
            .iter()
            .any(|selector| selector.matches_inbound(inner))
    }

    /// True if a packet is an ICMP error of a router that answers a flow of this tunnel
    /// (RFC 4301 6.2). The verdict holds for this packet alone: another one quotes something else.
    #[cold]
    #[must_use]
    pub fn carries_error(&self, packet: &[u8], inner: &Inner) -> bool {
        self.spec.mode == Mode::Tunnel
            && wire::answered(packet, inner).is_some_and(|flow| self.carries(&flow))
    }

    /// True if this encapsulation and outer IP version are the SA's.
    #[must_use]
    pub fn comes_by(&self, encapsulation: Encapsulation, ipv4: bool) -> bool {
        self.spec.encapsulation == encapsulation && self.spec.local.is_ipv4() == ipv4
    }

    /// Makes the opener of one worker.
    ///
    /// # Errors
    /// `ProviderError` if there is no AEAD for the suite.
    pub fn opener(&self, maker: &impl MakeAead) -> Result<SaOpener, ProviderError> {
        self.spec.opener(maker)
    }
}
