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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_window_says_what_a_memory_of_every_number_says(
        size in prop_oneof![Just(64_u16), Just(1024), 64..=8192_u16],
        begin in begin(),
        steps in prop::collection::vec(
            prop_oneof![
                6 => -9000..20_i64,
                6 => -70..70_i64,
                2 => 1..20_000_i64,
                1 => 1..1_i64 << 32,
            ],
            1..400,
        ),
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
