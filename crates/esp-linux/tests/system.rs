//! Memory, processors and waiting.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use esp_linux::mem::{CACHE_LINE, Pages, Region, Slots};
use esp_linux::poll::{Event, Events, Interest, Poller, Waker};
use esp_linux::{Errno, Error, cpu};

#[test]
fn slots_are_zeroed_apart_and_on_cache_lines_of_different_sets() {
    for (count, len) in [(1, 1), (7, 1500), (64, 65_536), (3, 64)] {
        let mut slots = Slots::new(count, len).unwrap();
        assert_eq!(slots.count(), count);
        assert!((0..count).all(|i| slots.get(i) == Some(&vec![0; len][..])));
        let mut starts = Vec::new();
        for (slot, fill) in slots.iter_mut().zip(1..) {
            starts.push(slot.as_ptr().addr());
            slot.fill(fill);
        }
        assert_eq!(starts.len(), count);
        assert!(starts.iter().all(|start| start % CACHE_LINE == 0));
        let of_neighbours = starts
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) / CACHE_LINE);
        assert!(of_neighbours.into_iter().all(|lines| lines % 2 == 1));
        for (i, fill) in (0..count).zip(1..) {
            assert_eq!(slots.get_mut(i).unwrap(), vec![fill; len]);
        }
        assert_eq!(slots.get(count), None);
        assert_eq!(slots.get_mut(usize::MAX), None);
    }
}

#[test]
fn memory_that_cannot_be_is_refused() {
    for (count, len) in [(0, 1500), (usize::MAX, 1500), (2, usize::MAX)] {
        assert!(matches!(Slots::new(count, len), Err(Error::Argument(_))));
    }
    assert!(matches!(Region::new(0), Err(Error::Argument(_))));
    let far_too_much = Region::new(1 << 60).unwrap_err();
    assert_eq!(far_too_much.errno(), Some(Errno::NOMEM));
}

#[test]
fn only_large_regions_ask_for_huge_pages() {
    assert_eq!(Region::new(4096).unwrap().pages(), Pages::Plain);
    let mut large = Region::new(3 << 20).unwrap();
    assert_ne!(large.pages(), Pages::Plain);
    assert!(large.len() >= 3 << 20);
    *large.last_mut().unwrap() = 1;
    let (first, rest) = large.split_first().unwrap();
    assert_eq!((*first, *rest.last().unwrap()), (0, 1));
}

#[test]
fn a_pinned_thread_has_one_processor() {
    let all = cpu::allowed().unwrap();
    assert!(!all.is_empty() && all.is_sorted());
    let last = *all.last().unwrap();
    let pinned = std::thread::spawn(move || {
        cpu::pin_current_thread(last).unwrap();
        cpu::allowed().unwrap()
    });
    assert_eq!(pinned.join().unwrap(), [last]);
    assert_eq!(cpu::allowed().unwrap(), all);
    let missing = cpu::pin_current_thread(1023).unwrap_err();
    assert_eq!(missing.errno(), Some(Errno::INVAL));
    let refused = cpu::pin_current_thread(usize::MAX);
    assert!(matches!(refused, Err(Error::Argument(_))));
}

fn wait(poller: &Poller, timeout: Option<Duration>) -> Vec<Event> {
    let mut events = Events::new(4);
    poller.wait(&mut events, timeout).unwrap();
    events.iter().collect()
}

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn a_waker_wakes_from_another_thread_until_it_is_cleared() {
    let (poller, waker) = (Poller::new().unwrap(), Arc::new(Waker::new().unwrap()));
    poller.add(&waker, u64::MAX, Interest::READ).unwrap();
    assert_eq!(wait(&poller, NOW), []);
    let theirs = Arc::clone(&waker);
    let thread = std::thread::spawn(move || {
        theirs.wake().unwrap();
        theirs.wake().unwrap();
    });
    let set = Event {
        token: u64::MAX,
        readable: true,
        writable: false,
    };
    assert_eq!(wait(&poller, None), [set]);
    thread.join().unwrap();
    assert_eq!(wait(&poller, NOW), [set]);
    waker.clear().unwrap();
    waker.clear().unwrap();
    assert_eq!(wait(&poller, Some(Duration::from_millis(1))), []);
}

#[test]
fn readiness_is_told_as_it_is_asked_for() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let poller = Poller::new().unwrap();
    poller.add(&ours, 5, Interest::READ).unwrap();
    assert_eq!(wait(&poller, NOW), []);
    theirs.send(b"x").unwrap();
    let event = |readable, writable| Event {
        token: 5,
        readable,
        writable,
    };
    assert_eq!(wait(&poller, NOW), [event(true, false)]);
    let both = Interest::READ | Interest::WRITE;
    poller.modify(&ours, 5, both).unwrap();
    assert_eq!(wait(&poller, NOW), [event(true, true)]);
    let twice = poller.add(&ours, 5, both).unwrap_err();
    assert_eq!(twice.errno(), Some(Errno::EXIST));
    poller.remove(&ours).unwrap();
    assert_eq!(wait(&poller, NOW), []);
    let missing = poller.modify(&ours, 5, both).unwrap_err();
    assert_eq!(missing.errno(), Some(Errno::NOENT));
}
