//! The engine: starts the workers and carries out the control plane's commands. No packet passes
//! here.

mod counters;
mod lifecycle;
mod sad_change;
mod sas;
mod settings;
mod status;
mod steered;
mod steering;

pub use counters::SaCounters;
pub use lifecycle::Engine;
pub use sad_change::{Numbers, Refused, SadChange};
pub use settings::{MAX_WORKERS, Offloads, Settings};
pub use status::OffloadStatus;
pub use steering::LaneStatus;
