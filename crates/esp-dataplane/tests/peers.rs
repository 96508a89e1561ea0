//! Peers that move: SAs that follow, and SAs that must not turn the others back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use esp_core::esp::sa::{Encapsulation, KeyMaterial, Mode, SaSpec};
use esp_core::esp::suite::SUITES;
use esp_dataplane::peers::{GsoRefusal, Heard, Peer, Peers, SETTLE};

const NOT_YET: Duration = SETTLE.saturating_sub(Duration::from_millis(1));

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], port))
}

/// Receives an SA's newest packet; true if the peer moved to its source.
fn hear(peer: &Peer, heard: &Heard, src: SocketAddr, now: Instant) -> bool {
    !peer.is_at(src, heard) && peer.follow(src, heard, now)
}

#[test]
fn a_peer_is_where_it_is_configured_until_any_sa_hears_from_elsewhere() {
    let (peer, now) = (Peer::new(at(1)), Instant::now());
    let (one, two) = (Heard::default(), Heard::default());
    assert_eq!(peer.address(), at(1));
    assert!(!hear(&peer, &one, at(1), now));
    assert!(hear(&peer, &two, at(2), now));
    assert_eq!(peer.address(), at(2));
}

#[test]
fn a_peer_that_may_be_anywhere_is_nowhere_until_it_is_heard_or_was_somewhere_last() {
    let nowhere = || Peer::new(SocketAddr::from(([0, 0, 0, 0], 4500)));
    let (now, heard) = (Instant::now(), Heard::default());
    let peer = nowhere();
    assert!(peer.is_nowhere());
    peer.place(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 4500)));
    assert!(peer.is_nowhere(), "of the other IP version");
    peer.place(at(1));
    assert!(!peer.is_nowhere() && peer.address() == at(1));
    // A place from before is no more than that: the first packet from elsewhere moves the peer.
    assert!(hear(&peer, &heard, at(2), now));
    peer.place(at(1));
    assert_eq!(peer.address(), at(2));
    let unheard = nowhere();
    assert!(hear(&unheard, &Heard::default(), at(3), now));
    assert_eq!(unheard.address(), at(3));
}

#[test]
fn a_late_packet_of_a_quiet_sa_does_not_turn_the_tunnel_back() {
    let (peer, start) = (Peer::new(at(1)), Instant::now());
    let (busy, quiet, silent) = (Heard::default(), Heard::default(), Heard::default());
    assert!(!hear(&peer, &quiet, at(1), start));
    assert!(hear(&peer, &busy, at(2), start));
    for sa in [&quiet, &silent] {
        for src in [at(1), at(3)] {
            assert!(!hear(&peer, sa, src, start));
            assert!(!hear(&peer, sa, src, start + NOT_YET));
        }
    }
    assert_eq!(peer.address(), at(2));
}

#[test]
fn an_sa_that_was_heard_where_the_peer_is_follows_it_at_once() {
    let (peer, now) = (Peer::new(at(1)), Instant::now());
    let (one, two) = (Heard::default(), Heard::default());
    for (src, sa) in [(2, &one), (3, &one), (1, &one)] {
        assert!(hear(&peer, sa, at(src), now));
    }
    assert!(!hear(&peer, &two, at(2), now));
    assert!(!hear(&peer, &two, at(1), now));
    assert!(hear(&peer, &two, at(2), now));
    // The first was heard there before it moved again, and must not turn it back.
    assert!(!hear(&peer, &one, at(1), now));
    assert_eq!(peer.address(), at(2));
}

#[test]
fn a_peer_that_moved_back_is_followed_when_nothing_can_be_late_any_more() {
    let (peer, start) = (Peer::new(at(1)), Instant::now());
    let (one, two) = (Heard::default(), Heard::default());
    assert!(hear(&peer, &one, at(2), start));
    assert!(!hear(&peer, &two, at(1), start + NOT_YET));
    assert!(hear(&peer, &two, at(1), start + SETTLE));
    assert_eq!(peer.address(), at(1));
    // The time restarts with each move.
    assert!(!hear(&peer, &one, at(2), start + SETTLE + NOT_YET));
    assert!(hear(&peer, &one, at(2), start + SETTLE + SETTLE));
}

#[test]
fn of_two_workers_that_hear_from_two_places_at_once_one_moves_the_peer() {
    for _ in 0..200 {
        let (peer, barrier) = (Peer::new(at(1)), Barrier::new(2));
        let now = Instant::now();
        let moved: Vec<bool> = thread::scope(|scope| {
            let worker = |port| {
                let (peer, barrier) = (&peer, &barrier);
                scope.spawn(move || {
                    let heard = Heard::default();
                    barrier.wait();
                    hear(peer, &heard, at(port), now)
                })
            };
            let workers = [worker(2), worker(3)];
            workers.map(|worker| worker.join().unwrap()).to_vec()
        });
        assert_eq!(moved.iter().filter(|moved| **moved).count(), 1);
        assert_eq!(peer.address(), if moved[0] { at(2) } else { at(3) });
    }
}

#[test]
fn a_refused_gso_send_counts_for_the_address_to_which_it_was_sent() {
    let (here, there) = (at(1).ip(), "192.0.2.77".parse().unwrap());
    let refusal = GsoRefusal::default();
    assert_eq!(refusal.at(here), None);
    assert!(refusal.record(here, "EIO"));
    assert!(!refusal.record(here, "EIO"));
    assert_eq!((refusal.at(here), refusal.at(there)), (Some("EIO"), None));
    // A peer that moved is tried, and tried again where it comes back.
    assert!(refusal.record(there, "EINVAL"));
    assert_eq!(
        (refusal.at(here), refusal.at(there)),
        (None, Some("EINVAL"))
    );
}

fn spec(name: &str, tunnel: Option<&str>, pair: Option<&str>) -> SaSpec {
    let suite = &SUITES[0];
    SaSpec {
        name: name.into(),
        spi: 0x1001,
        suite,
        keymat: KeyMaterial::new(suite, &vec![7; suite.keymat_len()]).unwrap(),
        mode: Mode::Tunnel,
        encapsulation: Encapsulation::Udp,
        local: [192, 0, 2, 1].into(),
        remote: at(4500).ip(),
        remote_port: 4500,
        local_original: None,
        remote_original: None,
        selectors: Vec::new(),
        esn: true,
        replay_window: 64,
        pair: pair.map(Into::into),
        tunnel: tunnel.map(Into::into),
        lane: None,
    }
}

#[test]
fn all_sas_of_a_tunnel_have_one_peer_and_no_other_tunnel_has_it() {
    let mut peers = Peers::default();
    let first = peers.place(&spec("t/in", Some("t"), Some("t/out")));
    for name in ["t/out", "t/in.2", "t/out.2"] {
        assert!(Arc::ptr_eq(
            &first,
            &peers.place(&spec(name, Some("t"), None))
        ));
    }
    for (name, tunnel) in [("u/in", Some("u")), ("t", None)] {
        assert!(!Arc::ptr_eq(
            &first,
            &peers.place(&spec(name, tunnel, None))
        ));
    }
    let _ = first.follow(at(2), &Heard::default(), Instant::now());
    assert_eq!(
        peers.place(&spec("t/out.3", Some("t"), None)).address(),
        at(2)
    );
    assert_eq!(
        peers.place(&spec("u/out", Some("u"), None)).address(),
        at(4500)
    );
}

#[test]
fn a_pair_without_a_tunnel_has_one_peer_whichever_comes_first_or_names_the_other() {
    for (one, other) in [
        (Some("out"), Some("in")),
        (Some("out"), None),
        (None, Some("in")),
    ] {
        let mut peers = Peers::default();
        let inbound = peers.place(&spec("in", None, one));
        assert!(Arc::ptr_eq(
            &inbound,
            &peers.place(&spec("out", None, other))
        ));
    }
    let mut peers = Peers::default();
    let alone = peers.place(&spec("in", None, None));
    assert!(!Arc::ptr_eq(&alone, &peers.place(&spec("out", None, None))));
}

#[test]
fn an_sa_that_is_configured_for_another_place_or_without_udp_has_its_own_peer() {
    let mut peers = Peers::default();
    let (tunnel, pair) = (Some("t"), Some("t/in"));
    let first = peers.place(&spec("t/in", tunnel, None));
    let mut elsewhere = spec("t/out", tunnel, pair);
    elsewhere.remote_port = 4501;
    let mut raw = spec("t/out.2", tunnel, pair);
    raw.encapsulation = Encapsulation::None;
    for other in [elsewhere, raw] {
        assert!(!Arc::ptr_eq(&first, &peers.place(&other)));
    }
}

#[test]
fn an_sa_that_is_replaced_keeps_its_peer_while_its_configured_end_is_the_same() {
    let mut peers = Peers::default();
    let first = spec("t/in", Some("t"), None);
    let peer = peers.place(&first);
    let mut same = |now: &SaSpec| Arc::ptr_eq(&peers.moved(&peer, &first, now), &peer);
    assert!(same(&spec("other/name", Some("t"), None)));
    assert!(same(&spec("t/in", Some("u"), None)));
    assert!(same(&spec("t/in", None, Some("t/out"))));
    let mut elsewhere = first.clone();
    elsewhere.remote_port += 1;
    assert!(!same(&elsewhere));
    let mut raw = first.clone();
    raw.encapsulation = Encapsulation::None;
    assert!(!same(&raw));
    // The tunnel that it came to has its peer now.
    let other = spec("u/out", Some("u"), None);
    assert!(Arc::ptr_eq(&peers.place(&other), &peer));
    let theirs = peers.place(&spec("w/in", Some("w"), None));
    let now = peers.moved(&peer, &first, &spec("w/out", Some("w"), None));
    assert!(Arc::ptr_eq(&now, &theirs));
}
