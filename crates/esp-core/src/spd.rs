//! The outbound policies in their order, looked up by packet (RFC 4301 4.4.1).

use std::collections::HashMap;
use std::sync::Arc;

use crate::selector::{Prefix, Selector};
use crate::wire::Inner;

/// What a policy does with a packet that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it through an SA.
    Protect,
    /// Let it pass beside the tunnel.
    Bypass,
    /// Drop it.
    Discard,
}

/// One entry of the SPD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The policy's name.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// Which packets it is about: any of these.
    pub selectors: Vec<Selector>,
    /// The outbound SA of a protect policy.
    pub sa: Option<Arc<str>>,
}

/// The policies in their order: the first that matches a packet is the packet's.
///
/// The selectors are found by the remote prefix, so that 10,000 policies with their own remote
/// networks cost one look-up for each prefix length in use.
#[derive(Debug, Default)]
pub struct Spd {
    policies: Vec<Policy>,
    /// Policy and selector, in order.
    entries: Vec<(usize, usize)>,
    /// The entries with one remote prefix, in order.
    by_remote: HashMap<Prefix, Vec<usize>>,
    lengths: Vec<(u8, u8)>,
}

impl Spd {
    /// Put policies in the order given.
    #[must_use]
    pub fn new(policies: Vec<Policy>) -> Self {
        let mut spd = Self {
            policies,
            ..Self::default()
        };
        for (p, policy) in spd.policies.iter().enumerate() {
            for (s, selector) in policy.selectors.iter().enumerate() {
                spd.by_remote
                    .entry(selector.remote)
                    .or_default()
                    .push(spd.entries.len());
                spd.entries.push((p, s));
                let length = (selector.remote.version(), selector.remote.bits());
                if !spd.lengths.contains(&length) {
                    spd.lengths.push(length);
                }
            }
        }
        spd
    }

    /// The policies, in order.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// The first policy that matches a packet that leaves here.
    #[must_use]
    pub fn lookup(&self, inner: &Inner) -> Option<&Policy> {
        self.lengths
            .iter()
            .filter(|(version, _)| *version == inner.version)
            .filter_map(|&(version, bits)| {
                let remote = Prefix::network_of(version, bits, inner.dst);
                self.by_remote.get(&remote)?.iter().copied().find(|&entry| {
                    self.selector(entry)
                        .is_some_and(|selector| selector.matches_outbound(inner))
                })
            })
            .min()
            .and_then(|entry| self.policies.get(self.entries.get(entry)?.0))
    }

    fn selector(&self, entry: usize) -> Option<&Selector> {
        let &(policy, selector) = self.entries.get(entry)?;
        self.policies.get(policy)?.selectors.get(selector)
    }
}
