use std::collections::HashSet;

use esp_core::DropReason;
use esp_core::esp::replay::ReplayWindow;
use proptest::prelude::*;

/// The window that keeps every number it accepted.
struct Model {
    size: u64,
    begin: u64,
    highest: u64,
    seen: HashSet<u64>,
}

impl Model {
    fn check(&self, seq: u64) -> Result<(), DropReason> {
        if seq == 0 || u128::from(seq) + u128::from(self.size) <= u128::from(self.highest) {
            Err(DropReason::ReplayOld)
        } else if seq <= self.begin || self.seen.contains(&seq) {
            Err(DropReason::ReplayDuplicate)
        } else {
            Ok(())
        }
    }

    fn commit(&mut self, seq: u64) -> Result<bool, DropReason> {
        self.check(seq)?;
        self.seen.insert(seq);
        let newest = seq > self.highest;
        self.highest = self.highest.max(seq);
        Ok(newest)
    }

    /// RFC 4303 A2.2, its two cases as they are written there.
    fn infer(&self, seql: u32) -> Option<u64> {
        let (th, tl) = (self.highest >> 32, self.highest & 0xFFFF_FFFF);
        let seql = u64::from(seql);
        let seqh = if tl >= self.size - 1 {
            if seql > tl - self.size {
                Some(th)
            } else {
                th.checked_add(1)
            }
        } else if seql >= (tl + (1 << 32)).wrapping_sub(self.size - 1) {
            th.checked_sub(1)
        } else {
            Some(th)
        }?;
        (seqh >> 32 == 0).then_some(seqh << 32 | seql)
    }
}

fn begin() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..200_u64,
        Just(u64::from(u32::MAX)),
        (1_u64 << 32)..(1 << 32) + 9000,
        any::<u64>(),
        u64::MAX - 9000..=u64::MAX,
    ]
}

fn size() -> impl Strategy<Value = u16> {
    prop_oneof![Just(64_u16), Just(1024), 64..=8192_u16]
}

/// Distance of a number from the highest.
fn step() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => -9000..20_i64,
        6 => -70..70_i64,
        2 => 1..20_000_i64,
        1 => 1..1_i64 << 32,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_window_says_what_a_memory_of_every_number_says(
        size in size(),
        begin in begin(),
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let window = ReplayWindow::new(size, begin);
        let mut model =
            Model { size: size.into(), begin, highest: begin, seen: HashSet::new() };
        for step in steps {
            let seq = model.highest.saturating_add_signed(step);
            prop_assert_eq!(window.check(seq), model.check(seq), "{}", seq);
            prop_assert_eq!(window.commit(seq), model.commit(seq), "{}", seq);
            prop_assert_eq!(window.highest(), model.highest);
        }
    }

    #[test]
    fn a_window_of_another_size_has_seen_what_the_former_one_has(
        sizes in prop::collection::vec(size(), 2..5),
        begin in begin(),
        before in prop::collection::vec(step(), 0..150),
        between in prop::collection::vec((any::<bool>(), step()), 0..30),
    ) {
        let mut window = ReplayWindow::new(sizes[0], begin);
        let mut model =
            Model { size: sizes[0].into(), begin, highest: begin, seen: HashSet::new() };
        for &size in &sizes[1..] {
            for &step in &before {
                let seq = model.highest.saturating_add_signed(step);
                prop_assert_eq!(window.commit(seq), model.commit(seq), "{}", seq);
            }
            let next = window.continued(size);
            prop_assert_eq!(next.is_settled(), u64::from(size) == model.size);
            for &(by_former, step) in &between {
                let seq = model.highest.saturating_add_signed(step);
                let is_within = |highest: u64| seq > highest.saturating_sub(size.into());
                let may = model.check(seq).is_ok();
                let (checked, committed) = if by_former {
                    (window.check(seq).is_ok(), window.commit(seq).is_ok())
                } else {
                    (next.check(seq).is_ok(), next.commit(seq).is_ok())
                };
                prop_assert_eq!(checked, committed);
                prop_assert!(may || !committed, "accepted again: {}", seq);
                prop_assert!(committed || !may || !by_former && !is_within(model.highest));
                if committed {
                    model.commit(seq).unwrap();
                }
            }
            window = next.settled();
            // Left of the former window nobody knows what was seen.
            if u64::from(size) != model.size {
                model.begin = model.begin.max(model.highest.saturating_sub(model.size));
            }
            model.size = size.into();
            prop_assert!(window.is_settled());
            prop_assert_eq!(window.highest(), model.highest);
            let left = model.highest.saturating_sub(model.size + 40);
            for seq in left..=model.highest.saturating_add(20) {
                prop_assert_eq!(window.check(seq), model.check(seq), "{}", seq);
            }
        }
    }

    #[test]
    fn the_high_half_is_inferred_as_rfc_4303_a2_2_says(
        size in 64..=8192_u16, begin in begin(), seq_lo in any::<u32>(), near in -9000..9000_i32,
    ) {
        let window = ReplayWindow::new(size, begin);
        let model = Model { size: size.into(), begin, highest: begin, seen: HashSet::new() };
        for lo in [seq_lo, (begin as u32).wrapping_add_signed(near), begin as u32] {
            let inferred = window.infer(lo);
            prop_assert_eq!(inferred, model.infer(lo).unwrap_or(0));
            prop_assert!(inferred == 0 || inferred as u32 == lo);
        }
    }
}

#[test]
fn numbers_of_before_a_restart_count_as_seen() {
    let window = ReplayWindow::new(64, 1000);
    for seq in 937..=1000 {
        assert_eq!(window.check(seq), Err(DropReason::ReplayDuplicate));
    }
    assert_eq!(window.check(936), Err(DropReason::ReplayOld));
    assert_eq!(window.check(1001), Ok(()));
}

#[test]
fn two_workers_do_not_both_accept_a_number() {
    for size in [64, 1024] {
        let window = ReplayWindow::new(size, 0);
        let accepted: usize = std::thread::scope(|scope| {
            let work = || (1..=3000).filter(|seq| window.commit(*seq).is_ok()).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        assert!(accepted <= 3000);
        assert_eq!(window.highest(), 3000);
        for seq in 1..=3000 {
            assert!(window.commit(seq).is_err());
        }
    }
}

#[test]
fn workers_of_an_sa_and_of_its_replacement_do_not_both_accept_a_number() {
    for sizes in [[64, 64], [64, 8192], [1024, 64]] {
        let former = ReplayWindow::new(sizes[0], 0);
        let next = former.continued(sizes[1]);
        let work = |window: &ReplayWindow, last: u64| {
            (1..=last).filter(|seq| window.commit(*seq).is_ok()).count()
        };
        let mut accepted: usize = std::thread::scope(|scope| {
            let workers = [&former, &next, &former, &next]
                .map(|window| scope.spawn(move || work(window, 3000)));
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        // Some still use the window that isn't settled, some the one that is.
        accepted += std::thread::scope(|scope| {
            let worker = scope.spawn(|| work(&next, 6000));
            let settled = next.settled();
            let others = work(&settled, 6000);
            worker.join().unwrap() + others
        });
        assert!(accepted <= 6000);
        let settled = next.settled();
        assert_eq!(settled.highest(), 6000);
        assert_eq!(work(&settled, 6000), 0);
    }
}
