//! State shared by workers, under every interleaving of their steps.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --test loom`
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use esp_core::DropReason;
use esp_core::esp::replay::ReplayWindow;
use esp_core::esp::seq::{Lease, SeqCounter};
use loom::sync::Arc;
use loom::thread;

const fn lease(first: u64, last: u64) -> Lease {
    Lease { first, last }
}

fn take(counter: &SeqCounter, times: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    for _ in 0..times {
        if let Ok(range) = counter.reserve(2) {
            taken.extend(range.first..=range.last());
        }
    }
    taken
}

fn assert_each_once(mut taken: Vec<u64>, within: impl Fn(u64) -> bool) {
    assert!(taken.iter().all(|seq| within(*seq)), "{taken:?}");
    taken.sort_unstable();
    let count = taken.len();
    taken.dedup();
    assert_eq!(taken.len(), count);
}

#[test]
fn no_number_is_given_out_twice_or_beyond_the_lease() {
    loom::model(|| {
        let counter = Arc::new(SeqCounter::new(u64::MAX, lease(1, 3)).unwrap());
        let other = Arc::clone(&counter);
        let worker = thread::spawn(move || take(&other, 2));
        let mut taken = take(&counter, 2);
        taken.extend(worker.join().unwrap());
        assert_eq!(taken.len(), 3);
        assert_each_once(taken, |seq| (1..=3).contains(&seq));
    });
}

#[test]
fn a_lease_that_comes_meanwhile_gives_its_numbers_once_and_never_the_gap() {
    for next in [lease(3, 4), lease(7, 8)] {
        loom::model(move || {
            let counter = Arc::new(SeqCounter::new(u64::MAX, lease(1, 2)).unwrap());
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let counter = Arc::clone(&counter);
                    thread::spawn(move || take(&counter, 1))
                })
                .collect();
            counter.extend(next).unwrap();
            let mut taken: Vec<u64> = workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect();
            taken.extend(take(&counter, 3));
            assert_eq!(taken.len(), 4);
            assert_each_once(taken, |seq| {
                (1..=2).contains(&seq) || (next.first..=next.last).contains(&seq)
            });
        });
    }
}

#[test]
fn nobody_finds_a_number_of_the_gap_while_another_goes_over_it() {
    loom::model(|| {
        let counter = Arc::new(SeqCounter::new(u64::MAX, lease(1, 1)).unwrap());
        counter.extend(lease(5, 8)).unwrap();
        let other = Arc::clone(&counter);
        let worker = thread::spawn(move || take(&other, 2));
        let mut taken = take(&counter, 2);
        taken.extend(worker.join().unwrap());
        assert_each_once(taken, |seq| seq == 1 || (5..=8).contains(&seq));
    });
}

#[test]
fn one_number_is_accepted_by_one_worker() {
    loom::model(|| {
        let window = Arc::new(ReplayWindow::new(64, 0));
        let other = Arc::clone(&window);
        let worker = thread::spawn(move || [other.commit(5), other.commit(6)]);
        let mine = [window.commit(6), window.commit(5)];
        let theirs = worker.join().unwrap();
        for (a, b) in [(mine[0], theirs[1]), (mine[1], theirs[0])] {
            assert!(a.is_ok() != b.is_ok());
            assert!([a, b].contains(&Err(DropReason::ReplayDuplicate)));
        }
        assert_eq!(window.highest(), 6);
    });
}

#[test]
fn a_number_is_not_accepted_again_while_the_window_moves() {
    loom::model(|| {
        let window = Arc::new(ReplayWindow::new(64, 0));
        assert_eq!(window.commit(3), Ok(true));
        let other = Arc::clone(&window);
        // 131 takes the place of the block that holds 3.
        let worker = thread::spawn(move || other.commit(131));
        assert!(window.commit(3).is_err());
        assert_eq!(worker.join().unwrap(), Ok(true));
        assert_eq!(window.commit(3), Err(DropReason::ReplayOld));
    });
}

#[test]
fn an_sa_and_its_replacement_give_no_number_twice() {
    loom::model(|| {
        let counter = SeqCounter::new(u64::MAX, lease(1, 3)).unwrap();
        let next = counter.continued(2);
        let worker = thread::spawn(move || take(&counter, 2));
        let mut taken = take(&next, 2);
        assert!(taken.iter().all(|seq| *seq <= 2));
        taken.extend(worker.join().unwrap());
        assert_eq!(taken.len(), 3);
        assert_each_once(taken, |seq| (1..=3).contains(&seq));
    });
}

#[test]
fn one_number_is_accepted_by_one_of_two_windows() {
    loom::model(|| {
        let former = ReplayWindow::new(64, 0);
        let next = former.continued(128);
        let worker = thread::spawn(move || former.commit(5));
        let mine = next.commit(5);
        assert!(worker.join().unwrap().is_ok() != mine.is_ok());
        assert!(next.settled().commit(5).is_err());
    });
}

#[test]
fn a_window_takes_over_what_was_seen_while_others_use_both() {
    loom::model(|| {
        let former = ReplayWindow::new(64, 0);
        assert_eq!(former.commit(5), Ok(true));
        let next = Arc::new(former.continued(128));
        drop(former);
        let other = Arc::clone(&next);
        let worker = thread::spawn(move || [other.commit(5), other.commit(6)]);
        let settled = next.settled();
        let mine = settled.commit(6);
        let [again, theirs] = worker.join().unwrap();
        assert_eq!(again, Err(DropReason::ReplayDuplicate));
        assert!(mine.is_ok() != theirs.is_ok());
        assert!(settled.commit(5).is_err() && settled.commit(6).is_err());
    });
}

#[test]
fn a_mark_is_told_once() {
    loom::model(|| {
        let counter = Arc::new(SeqCounter::new(u64::MAX, lease(1, 4)).unwrap());
        let other = Arc::clone(&counter);
        let tell = |counter: &SeqCounter| {
            let _ = counter.reserve(2).unwrap();
            usize::from(counter.passed_low())
        };
        let worker = thread::spawn(move || tell(&other));
        assert_eq!(tell(&counter) + worker.join().unwrap(), 1);
    });
}
