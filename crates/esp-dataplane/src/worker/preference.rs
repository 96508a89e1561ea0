//! The priority of lane 0's worker over the others.

use esp_core::sync::lock;
use esp_linux::priority::{nice, set_nice};

use crate::shared::Shared;

/// The nice value of a worker that carries sparse flows alone. One that carries bulk keeps its own: a
/// worker that preempts the sender at each packet finds batches of one.
const PREFERRED: i32 = -11;

/// The nice value of one worker's thread.
#[derive(Debug, Default)]
pub(super) struct Preference {
    /// The value before it was preferred.
    before: Option<i32>,
}

impl Preference {
    /// Prefers this thread, or no longer; what the kernel refuses is recorded for the status.
    pub(super) fn set(&mut self, is_preferred: bool, shared: &Shared) {
        let changed = match (self.before, is_preferred) {
            (None, true) => nice().and_then(|before| {
                set_nice(PREFERRED.min(before))?;
                self.before = Some(before);
                Ok(())
            }),
            (Some(before), false) => set_nice(before).map(|()| self.before = None),
            _ => Ok(()),
        };
        let priority = self.before.and_then(|_| nice().ok());
        let refused = changed.map_or_else(|error| error.to_string(), |()| String::new());
        *lock(&shared.priority) = (priority, refused);
    }
}
