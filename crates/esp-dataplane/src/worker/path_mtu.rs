//! The path MTU of an outbound SA, as asked for last, and the ICMP errors that are left to send.

use std::time::Duration;

/// Least interval between two path MTU queries of an SA, however many packets were too big.
const QUESTION_INTERVAL: Duration = Duration::from_millis(200);
/// Most ICMP errors for an SA's packets in one interval.
const MAX_ANSWERS: u8 = 8;

/// An SA's path MTU.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    next_question: Duration,
    /// Bytes of the outer packet, if it is known.
    pub(crate) mtu: Option<usize>,
    answers_left: u8,
}

impl PathMtu {
    /// True if it may be asked for at `now`, a time since any beginning.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        now >= self.next_question
    }

    /// Takes the answer to a question at `now`.
    pub(crate) fn take(&mut self, mtu: Option<u32>, now: Duration) {
        *self = Self {
            next_question: now + QUESTION_INTERVAL,
            mtu: mtu.and_then(|mtu| usize::try_from(mtu).ok()),
            answers_left: MAX_ANSWERS,
        };
    }

    /// True if another ICMP error may be sent.
    pub(crate) const fn may_answer(&self) -> bool {
        self.answers_left > 0
    }

    /// Counts an ICMP error.
    pub(crate) const fn answered(&mut self) {
        self.answers_left = self.answers_left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_few_until_the_path_mtu_is_asked_for_again() {
        let (mut path, start) = (PathMtu::default(), Duration::from_secs(9));
        assert!(!path.may_answer());
        for round in 0..3 {
            let now = start + QUESTION_INTERVAL * round;
            assert!(path.is_due(now));
            path.take(Some(1400), now);
            assert!(!path.is_due(now + QUESTION_INTERVAL / 2));
            for _ in 0..MAX_ANSWERS {
                assert!(path.may_answer());
                path.answered();
            }
            assert!(!path.may_answer());
        }
    }
}
