use esp_core::DropReason;
use esp_core::esp::seq::{Lease, SeqCounter, SeqRange};
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

#[test]
fn an_sa_and_its_replacement_draw_from_one_counter() {
    let counter = SeqCounter::new(u64::MAX, lease(1, 5)).unwrap();
    counter.extend(lease(9, 12)).unwrap();
    let next = counter.continued(u64::MAX);
    assert!(next.continues(&counter) && counter.continues(&next));
    assert!(!next.continues(&SeqCounter::new(u64::MAX, lease(1, 5)).unwrap()));
    assert_eq!(counter.reserve(2).unwrap().last(), 2);
    assert_eq!(next.reserve(9).unwrap(), SeqRange { first: 3, count: 3 });
    assert_eq!(counter.reserve(1).unwrap().first, 9);
    next.extend(lease(13, 14)).unwrap();
    assert_eq!(
        counter.reserve(9).unwrap(),
        SeqRange {
            first: 10,
            count: 5
        }
    );
    assert_eq!(next.reserve(1), Err(DropReason::LeaseExhausted));
    assert_eq!(
        (next.used(), next.limit()),
        (counter.used(), counter.limit())
    );
}

#[test]
fn numbers_beyond_32_bits_end_an_sa_that_loses_its_esn_and_are_never_given_out_again() {
    let last = u64::from(u32::MAX);
    let esn = SeqCounter::new(u64::MAX, lease(last - 1, last + 100)).unwrap();
    let short = esn.continued(last);
    assert_eq!(short.limit(), last);
    assert_eq!(
        short.reserve(9).unwrap(),
        SeqRange {
            first: last - 1,
            count: 2
        }
    );
    assert_eq!(short.reserve(9), Err(DropReason::SeqExhausted));
    assert!(short.expire() && !short.expire());
    // A worker that has the former SA goes on meanwhile.
    assert_eq!(
        esn.reserve(3).unwrap(),
        SeqRange {
            first: last + 1,
            count: 3
        }
    );
    assert_eq!(short.reserve(9), Err(DropReason::SeqExhausted));
    assert_eq!((short.used(), short.limit()), (last + 3, last + 3));
    short.extend(lease(last + 200, last + 300)).unwrap();
    assert_eq!(short.reserve(9), Err(DropReason::SeqExhausted));
    let again = short.continued(u64::MAX);
    assert_eq!(
        again.reserve(999).unwrap(),
        SeqRange {
            first: last + 4,
            count: 97
        }
    );
    assert_eq!(again.reserve(9), Err(DropReason::LeaseExhausted));
    again.extend(lease(last + 301, last + 302)).unwrap();
    assert_eq!(again.reserve(9).unwrap().first, last + 301);
    assert!(again.expire());
}

#[test]
fn an_sa_that_gains_esn_goes_on_counting_and_has_a_lifetime_of_its_own() {
    let last = u64::from(u32::MAX);
    let short = SeqCounter::new(last, lease(last - 1, last + 5)).unwrap();
    short.reserve(9).unwrap();
    assert!(short.passed_soft() && short.passed_low());
    assert_eq!(short.reserve(9), Err(DropReason::SeqExhausted));
    let esn = short.continued(u64::MAX);
    assert_eq!(esn.reserve(9), Err(DropReason::LeaseExhausted));
    assert!(!esn.passed_soft());
    esn.extend(lease(last + 50, last + 51)).unwrap();
    assert_eq!(
        esn.reserve(9).unwrap(),
        SeqRange {
            first: last + 50,
            count: 2
        }
    );
}

#[test]
fn what_was_told_with_a_former_name_is_told_again() {
    let counter = SeqCounter::new(u64::MAX, lease(1, 10)).unwrap();
    counter.report_low_again();
    counter.reserve(1).unwrap();
    assert!(!counter.passed_low());
    counter.reserve(6).unwrap();
    assert!(counter.passed_low() && !counter.passed_low());
    let next = counter.continued(u64::MAX);
    next.report_low_again();
    assert!(next.passed_low() && !next.passed_low());
}
