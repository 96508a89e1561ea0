//! Selectors, the SPD (RFC 4301 4.4.1), and the lanes of a policy with several SAs.

pub mod lanes;
pub mod selector;
pub mod spd;
