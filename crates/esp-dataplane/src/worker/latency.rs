//! Low latency: one worker's request that processors wake up at once, and when it is held.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use esp_linux::Errno;
use esp_linux::latency::LatencyRequest;

use crate::latency::LatencyRequests;

/// A change of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    Hold,
    Release,
}

/// Decides when the request changes, without clock and device.
#[derive(Debug)]
struct Hold {
    /// Time after the last work.
    rest: Duration,
    /// The end of the hold, while there is one.
    until: Option<Instant>,
}

impl Hold {
    /// The change after one turn. `now` is the end of the turn.
    fn after(&mut self, worked: bool, now: Instant) -> Option<Transition> {
        let held = self.until.is_some();
        if worked {
            self.until = now.checked_add(self.rest);
        } else {
            self.until = self.until.filter(|&until| now < until);
        }
        match (held, self.until.is_some()) {
            (false, true) => Some(Transition::Hold),
            (true, false) => Some(Transition::Release),
            _ => None,
        }
    }
}

/// One worker's request: each has its own, since the kernel takes the smallest of all and so spares
/// the workers an agreement.
#[derive(Debug)]
pub struct LowLatency {
    hold: Hold,
    request: Option<LatencyRequest>,
    all: Arc<LatencyRequests>,
}

impl LowLatency {
    /// Opens a request that is held while there is work and for `rest` after it; None for none.
    /// A device that can't be opened is recorded in `all`, and there is no request.
    pub fn new(rest: Option<Duration>, device: &Path, all: &Arc<LatencyRequests>) -> Self {
        let request = rest.and_then(|_| match LatencyRequest::open(device) {
            Ok(request) => Some(request),
            Err(error) => {
                all.refuse(error.errno().unwrap_or(Errno::IO));
                None
            }
        });
        let rest = rest.unwrap_or_default();
        Self {
            hold: Hold { rest, until: None },
            request,
            all: Arc::clone(all),
        }
    }

    /// Follows a turn with a system call only where the request changes; returns the longest next
    /// wait. The clock is read once at most, and never without a request or while it rests.
    pub fn after(&mut self, worked: bool, clock: impl FnOnce() -> Instant) -> Option<Duration> {
        let request = self.request.as_ref()?;
        if !worked && self.hold.until.is_none() {
            return None;
        }
        let now = clock();
        let done = match self.hold.after(worked, now) {
            None => Ok(()),
            Some(Transition::Hold) => {
                self.all.add();
                request.hold()
            }
            Some(Transition::Release) => {
                self.all.remove();
                request.release()
            }
        };
        if let Err(error) = done {
            self.give_up(error.errno().unwrap_or(Errno::IO));
        }
        let until = self.hold.until?;
        Some(until.saturating_duration_since(now))
    }

    /// Closes the request, which releases it.
    fn give_up(&mut self, errno: Errno) {
        self.all.refuse(errno);
        self.close();
    }

    fn close(&mut self) {
        self.request = None;
        if self.hold.until.take().is_some() {
            self.all.remove();
        }
    }
}

impl Drop for LowLatency {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const REST: Duration = Duration::from_millis(40);
    const SHORT: Duration = Duration::from_millis(39);
    const HELD: [u8; 4] = 0i32.to_ne_bytes();
    const RELEASED: [u8; 4] = 2_000_000_000i32.to_ne_bytes();

    #[test]
    fn a_request_is_held_while_there_is_work_and_for_a_rest_after_it() {
        let began = Instant::now();
        let mut hold = Hold {
            rest: REST,
            until: None,
        };
        assert_eq!(hold.after(false, began), None, "nothing yet");
        assert_eq!(hold.after(true, began), Some(Transition::Hold));
        let soon = began + SHORT;
        assert_eq!(hold.after(false, soon), None);
        // More work restarts the rest, without a change.
        assert_eq!(hold.after(true, soon), None);
        assert_eq!(hold.after(false, soon + SHORT), None);
        assert_eq!(hold.after(false, soon + REST), Some(Transition::Release));
        assert_eq!(hold.after(false, soon + REST), None);
        assert_eq!(hold.after(true, soon + REST), Some(Transition::Hold));
        // Work after a pause that nobody looked at goes on with the same request.
        assert_eq!(hold.after(true, soon + 9 * REST), None);
    }

    /// A file in place of the device: it has every request written to it, one after another.
    struct Device(PathBuf);

    impl Device {
        fn new(name: &str) -> Self {
            let name = format!("esp-gw-latency-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, []).unwrap();
            Self(path)
        }

        fn written(&self) -> Vec<u8> {
            fs::read(&self.0).unwrap()
        }
    }

    impl Drop for Device {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_device_is_written_on_changes_alone_and_the_wait_ends_with_the_hold() {
        let (device, all) = (Device::new("changes"), Arc::default());
        let mut latency = LowLatency::new(Some(REST), &device.0, &all);
        let began = Instant::now();
        assert_eq!(latency.after(false, || panic!("the clock")), None);
        for _ in 0..1000 {
            assert_eq!(latency.after(true, || began), Some(REST));
        }
        assert!(all.held());
        assert_eq!(device.written(), HELD);
        let left = latency.after(false, || began + SHORT);
        assert_eq!(left, Some(REST.checked_sub(SHORT).unwrap()));
        assert_eq!(latency.after(false, || began + REST), None);
        assert!(!all.held());
        assert_eq!(device.written(), [HELD, RELEASED].concat());
        assert_eq!(latency.after(false, || panic!("the clock")), None);
        assert_eq!(all.refused(), None);
    }

    #[test]
    fn a_worker_that_ends_holds_nothing_any_more() {
        let (device, all) = (Device::new("end"), Arc::default());
        let mut one = LowLatency::new(Some(REST), &device.0, &all);
        let mut other = LowLatency::new(Some(REST), &device.0, &all);
        one.after(true, Instant::now);
        other.after(true, Instant::now);
        drop(one);
        assert!(all.held());
        drop(other);
        assert!(!all.held());
    }

    #[test]
    fn without_a_request_the_clock_is_never_read_and_the_reason_is_kept() {
        let all = Arc::default();
        let nowhere = Path::new("/nowhere/cpu_dma_latency");
        let mut normal = LowLatency::new(None, nowhere, &all);
        assert_eq!(normal.after(true, || panic!("the clock")), None);
        assert_eq!(all.refused(), None);
        let mut refused = LowLatency::new(Some(REST), nowhere, &all);
        assert_eq!(refused.after(true, || panic!("the clock")), None);
        assert_eq!(all.refused(), Some(Errno::NOENT));
        assert!(!all.held());
    }

    #[test]
    fn a_device_that_refuses_a_write_is_given_up() {
        let all = Arc::default();
        let mut latency = LowLatency::new(Some(REST), Path::new("/dev/full"), &all);
        assert_eq!(latency.after(true, Instant::now), None);
        assert!(!all.held());
        assert_eq!(all.refused(), Some(Errno::NOSPC));
        assert_eq!(latency.after(true, || panic!("the clock")), None);
    }
}
