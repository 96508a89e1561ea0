//! Which packets an SA carries, and which need one (RFC 4301 4.4.1).

pub mod selector;
pub mod spd;
