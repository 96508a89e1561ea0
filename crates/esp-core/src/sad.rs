//! The SAD: inbound SAs by SPI, outbound ones by name (RFC 4301 4.4.2).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::sa::{InboundSa, OutboundSa};

/// An SA with this name, or an inbound one with this SPI, is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SadConflict(Arc<str>);

impl fmt::Display for SadConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: an SA with its name or SPI is installed already",
            self.0
        )
    }
}

impl std::error::Error for SadConflict {}

/// The SAs of a gateway; a copy shares them, so that a new table can be published in one step.
#[derive(Clone, Debug, Default)]
pub struct Sad {
    outbound: HashMap<Arc<str>, Arc<OutboundSa>>,
    inbound: HashMap<u32, Arc<InboundSa>>,
    spis: HashMap<Arc<str>, u32>,
}

impl Sad {
    /// Add an outbound SA.
    ///
    /// # Errors
    /// `SadConflict` where its name is taken.
    pub fn insert_outbound(&mut self, sa: Arc<OutboundSa>) -> Result<(), SadConflict> {
        let name = &sa.spec.name;
        if self.outbound.contains_key(name) || self.spis.contains_key(name) {
            return Err(SadConflict(Arc::clone(name)));
        }
        self.outbound.insert(Arc::clone(name), sa);
        Ok(())
    }

    /// Add an inbound SA.
    ///
    /// # Errors
    /// `SadConflict` where its name or SPI is taken.
    pub fn insert_inbound(&mut self, sa: Arc<InboundSa>) -> Result<(), SadConflict> {
        let (name, spi) = (&sa.spec.name, sa.spec.spi);
        if self.outbound.contains_key(name)
            || self.spis.contains_key(name)
            || self.inbound.contains_key(&spi)
        {
            return Err(SadConflict(Arc::clone(name)));
        }
        self.spis.insert(Arc::clone(name), spi);
        self.inbound.insert(spi, sa);
        Ok(())
    }

    /// Forget the SA with this name; true if there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let inbound = self
            .spis
            .remove(name)
            .and_then(|spi| self.inbound.remove(&spi))
            .is_some();
        self.outbound.remove(name).is_some() || inbound
    }

    /// The outbound SA with this name.
    #[must_use]
    pub fn outbound(&self, name: &str) -> Option<&Arc<OutboundSa>> {
        self.outbound.get(name)
    }

    /// The inbound SA with this SPI.
    #[must_use]
    pub fn inbound(&self, spi: u32) -> Option<&Arc<InboundSa>> {
        self.inbound.get(&spi)
    }

    /// The inbound SA with this name.
    #[must_use]
    pub fn inbound_by_name(&self, name: &str) -> Option<&Arc<InboundSa>> {
        self.inbound(*self.spis.get(name)?)
    }

    /// Every outbound SA, in no order.
    pub fn outbound_sas(&self) -> impl Iterator<Item = &Arc<OutboundSa>> {
        self.outbound.values()
    }

    /// Every inbound SA, in no order.
    pub fn inbound_sas(&self) -> impl Iterator<Item = &Arc<InboundSa>> {
        self.inbound.values()
    }
}
