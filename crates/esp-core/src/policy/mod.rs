//! Selectors and the SPD (RFC 4301 4.4.1).

pub mod selector;
pub mod spd;
