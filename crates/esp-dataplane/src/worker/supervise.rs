//! Supervision of a worker's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use esp_linux::Result;

use super::mailbox::Mailbox;
use crate::events::{Event, Events};

/// Runs `work` on the worker thread and reports an early exit or a panic to the control plane, in a
/// line that begins with `name`.
pub(crate) fn run_supervised(
    name: &str,
    mailbox: &Mailbox,
    events: &Events,
    work: impl FnOnce() -> Result<()>,
) {
    let ended = catch_unwind(AssertUnwindSafe(work));
    // Release the control plane if it waits for this worker to use new tables.
    mailbox.announce_end();
    let reason = match ended {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        // The panic hook has written the location to stderr.
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            format!("panicked: {}", text.unwrap_or("for no reason"))
        }
    };
    events.push(Event::EngineFailed(format!("{name}: {reason}")));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use esp_core::sync::lock;
    use esp_linux::Error;
    use esp_linux::poll::Waker;

    use super::*;

    fn told_of(work: impl FnOnce() -> Result<()>) -> Vec<Event> {
        let mailbox = Mailbox::new().unwrap();
        let events = Events::new(Waker::new().unwrap());
        run_supervised("esp0: worker 1", &mailbox, &events, work);
        assert_eq!(*lock(&mailbox.generation_in_use), u64::MAX);
        events.take()
    }

    #[test]
    fn a_worker_that_panics_or_fails_is_told_of_and_waited_for_no_longer() {
        let panicked = told_of(|| panic!("packet {} has no end", 7));
        let reason = "esp0: worker 1: panicked: packet 7 has no end";
        assert_eq!(panicked, [Event::EngineFailed(reason.into())]);
        let failed = told_of(|| Err(Error::Argument("the TUN device is gone")));
        let reason = "esp0: worker 1: the TUN device is gone";
        assert_eq!(failed, [Event::EngineFailed(reason.into())]);
        assert_eq!(told_of(|| Ok(())), []);
    }
}
