use esp_core::DropReason;
use esp_core::esp::seq::{Lease, SeqCounter};
use proptest::prelude::*;

const fn lease(first: u64, last: u64) -> Lease {
    Lease { first, last }
}

proptest! {
    #[test]
    fn numbers_are_those_of_the_leases_in_order_and_each_once(
        gaps in prop::collection::vec((0..5_u64, 0..20_u64), 1..6),
        wants in prop::collection::vec(1..9_u32, 1..40),
    ) {
        let mut leases = Vec::new();
        let mut first = 1;
        for (gap, length) in gaps {
            first += gap;
            leases.push(lease(first, first + length - 1));
            first += length;
        }
        let counter = SeqCounter::new(u64::MAX, leases[0]).unwrap();
        for &lease in &leases[1..] {
            counter.extend(lease).unwrap();
        }
        let mut expected = leases.iter().flat_map(|lease| lease.first..=lease.last);
        for want in wants {
            match counter.reserve(want) {
                Ok(range) => {
                    prop_assert!(range.count >= 1 && range.count <= want);
                    for seq in range.first..=range.last() {
                        prop_assert_eq!(Some(seq), expected.next());
                    }
                    prop_assert_eq!(counter.used(), range.last());
                }
                Err(reason) => {
                    prop_assert_eq!(reason, DropReason::LeaseExhausted);
                    prop_assert_eq!(expected.next(), None);
                }
            }
        }
    }
}

#[test]
fn leases_that_overlap_or_go_back_are_refused() {
    assert!(SeqCounter::new(u64::MAX, lease(0, 5)).is_err());
    assert!(SeqCounter::new(u64::MAX, lease(5, 3)).is_err());
    let counter = SeqCounter::new(u64::MAX, lease(5, 10)).unwrap();
    for bad in [lease(10, 20), lease(1, 4), lease(0, 20), lease(12, 10)] {
        let error = counter.extend(bad).unwrap_err();
        assert_eq!(error.leased, 10, "{bad:?}");
    }
    counter.extend(lease(20, 30)).unwrap();
    let error = counter.extend(lease(15, 18)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the lease of 15 to 18 goes back: sequence numbers to 30 are leased already"
    );
    counter.extend(lease(31, 30)).unwrap();
}

#[test]
fn the_last_number_is_used_and_none_after_it() {
    for last_seq in [u64::from(u32::MAX), u64::MAX] {
        let counter = SeqCounter::new(last_seq, lease(last_seq - 1, last_seq)).unwrap();
        assert_eq!(counter.reserve(9).unwrap().last(), last_seq);
        assert_eq!(counter.reserve(1), Err(DropReason::SeqExhausted));
        assert_eq!(counter.used(), last_seq);
        assert!(counter.expire());
        assert!(!counter.expire());
    }
    let behind = SeqCounter::new(u64::from(u32::MAX), lease(1 << 33, 1 << 34)).unwrap();
    assert_eq!(behind.reserve(1), Err(DropReason::SeqExhausted));
}

#[test]
fn half_of_what_is_left_is_told_once_for_each_extension() {
    let counter = SeqCounter::new(u64::MAX, lease(1, 10)).unwrap();
    let _ = counter.reserve(4).unwrap();
    assert!(!counter.passed_low());
    let _ = counter.reserve(1).unwrap();
    assert!(counter.passed_low());
    assert!(!counter.passed_low());
    // 5 are left and 10 come: the mark is 7 further on, behind the gap.
    counter.extend(lease(101, 110)).unwrap();
    let _ = counter.reserve(5).unwrap();
    assert!(!counter.passed_low());
    assert_eq!(counter.reserve(1).unwrap().first, 101);
    assert!(!counter.passed_low());
    assert_eq!(counter.reserve(1).unwrap().first, 102);
    assert!(counter.passed_low());
}

#[test]
fn an_eighth_before_the_end_is_told_once() {
    let last = u64::from(u32::MAX);
    let counter = SeqCounter::new(last, lease(last - last / 8 - 1, last)).unwrap();
    assert!(!counter.passed_soft());
    let _ = counter.reserve(1).unwrap();
    assert!(counter.passed_soft());
    assert!(!counter.passed_soft());
}

#[test]
fn threads_share_numbers_without_one_twice() {
    let counter = SeqCounter::new(u64::MAX, lease(1, 5000)).unwrap();
    let mut all: Vec<u64> = std::thread::scope(|scope| {
        let take = || {
            let mut mine = Vec::new();
            while let Ok(range) = counter.reserve(3) {
                mine.extend(range.first..=range.last());
            }
            mine
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        counter.extend(lease(6001, 9000)).unwrap();
        let mut all: Vec<u64> = workers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect();
        all.extend(take());
        all
    });
    all.sort_unstable();
    assert_eq!(all, (1..=5000).chain(6001..=9000).collect::<Vec<_>>());
}
