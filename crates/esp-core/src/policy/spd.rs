//! The outbound policies in their order, looked up by packet (RFC 4301 4.4.1).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::policy::selector::{Prefix, Selector};
use crate::wire::Inner;

/// The fate of a packet that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyAction {
    /// Send through an SA.
    Protect,
    /// Pass beside the tunnel.
    Bypass,
    /// Drop.
    Discard,
}

/// One entry of the SPD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The policy's name.
    pub name: Arc<str>,
    /// The fate of the packets that match.
    pub action: PolicyAction,
    /// Selectors; one must match.
    pub selectors: Vec<Selector>,
    /// The outbound SAs of a protect policy, by lane (see [`crate::policy::lanes`]).
    pub sas: Vec<Arc<str>>,
}

/// The policies in their order: the first match decides.
///
/// The selectors are found by their two prefixes, so that 10,000 policies with networks of their
/// own cost one look-up for each pair of prefix lengths in use.
#[derive(Debug, Default)]
pub struct Spd {
    policies: Vec<Policy>,
    /// Policy and selector, in order.
    entries: Vec<(usize, usize)>,
    /// The entries with one local and one remote prefix, in order.
    by_prefixes: HashMap<(Prefix, Prefix), Vec<usize>>,
    has_lanes: bool,
    /// The pairs of prefix lengths in use: IP version, local bits, remote bits.
    lengths: HashSet<(u8, u8, u8)>,
}

impl Spd {
    /// Puts policies in the order given.
    #[must_use]
    pub fn new(policies: Vec<Policy>) -> Self {
        let mut spd = Self {
            has_lanes: policies.iter().any(|policy| policy.sas.len() > 1),
            policies,
            ..Self::default()
        };
        for (p, policy) in spd.policies.iter().enumerate() {
            for (s, selector) in policy.selectors.iter().enumerate() {
                let (local, remote) = (selector.local, selector.remote);
                spd.by_prefixes
                    .entry((local, remote))
                    .or_default()
                    .push(spd.entries.len());
                spd.entries.push((p, s));
                spd.lengths
                    .insert((remote.version(), local.bits(), remote.bits()));
            }
        }
        spd
    }

    /// The policies, in order.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// True if a policy has several SAs.
    #[must_use]
    pub const fn has_lanes(&self) -> bool {
        self.has_lanes
    }

    /// The first policy that matches an outbound packet.
    #[must_use]
    pub fn lookup(&self, inner: &Inner) -> Option<&Policy> {
        self.near(inner)
            .filter_map(|entries| {
                let mut entries = entries.iter().copied();
                entries.find(|&entry| {
                    self.selector(entry)
                        .is_some_and(|selector| selector.matches_outbound(inner))
                })
            })
            .min()
            .and_then(|entry| self.policies.get(self.entries.get(entry)?.0))
    }

    /// The policies, in order, that the whole packet of a fragment may match first: the same for
    /// every fragment of a packet, those with ports and those without.
    pub fn candidates(&self, fragment: &Inner) -> impl Iterator<Item = &Policy> {
        let may_match = |entry: &usize| {
            self.selector(*entry)
                .is_some_and(|selector| selector.may_match_whole(fragment))
        };
        let mut entries: Vec<usize> = self.near(fragment).flatten().copied().collect();
        entries.retain(may_match);
        entries.sort_unstable();
        let names_ports = |&entry: &usize| self.selector(entry).is_some_and(Selector::names_ports);
        let open = entries
            .iter()
            .take_while(|&entry| names_ports(entry))
            .count();
        entries.truncate(open + 1);
        entries
            .into_iter()
            .filter_map(|entry| self.policies.get(self.entries.get(entry)?.0))
    }

    /// The entries of the two prefixes, of each length in use, that a packet is in.
    fn near(&self, inner: &Inner) -> impl Iterator<Item = &Vec<usize>> {
        self.lengths
            .iter()
            .filter(|(version, ..)| *version == inner.version)
            .filter_map(|&(version, local, remote)| {
                let local = Prefix::network_of(version, local, inner.src);
                let remote = Prefix::network_of(version, remote, inner.dst);
                self.by_prefixes.get(&(local, remote))
            })
    }

    fn selector(&self, entry: usize) -> Option<&Selector> {
        let &(policy, selector) = self.entries.get(entry)?;
        self.policies.get(policy)?.selectors.get(selector)
    }
}
