//! The engine: makes the workers, and is what the control plane commands. Packets never come here.

mod counters;
mod lifecycle;
mod sas;
mod settings;
mod status;

pub use counters::SaCounters;
pub use lifecycle::Engine;
pub use sas::Refused;
pub use settings::{MAX_WORKERS, Offloads, Settings};
pub use status::OffloadStatus;
