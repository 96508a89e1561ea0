//! The key of a removed SA is gone from the process's memory: from the SA and from the libraries'
//! key schedules, which begin with the key itself.
//!
//! A process of its own: the memory of other tests would be searched, too.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;

use esp_core::esp::decap::SaOpener;
use esp_core::esp::encap::SaSealer;
use esp_core::esp::sa::{InboundSa, KeyMaterial, OutboundSa, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::esp::suite::{SUITES, Suite, TRAILER_ROOM};
use esp_core::provider::{Choice, Provider};
use zeroize::Zeroizing;

use crate::spec::tunnel;

#[path = "it/spec.rs"]
mod spec;

/// XOR mask of the test's own copies of keys, so that the search doesn't find them.
const MASK: u8 = 0x5A;
/// Bytes of a key that are looked for: the last, since an allocator overwrites the first ones of
/// what is freed.
const NEEDLE: usize = 16;

fn spec(suite: &'static Suite, masked: &[u8]) -> SaSpec {
    let mut keymat = Zeroizing::new(vec![0; masked.len()]);
    for (byte, masked) in keymat.iter_mut().zip(masked) {
        *byte = masked ^ MASK;
    }
    tunnel(suite, KeyMaterial::new(suite, &keymat).unwrap())
}

/// Number of places in this process's writable memory that hold a masked key.
fn places(key: &[u8]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = read_to_string("/proc/self/maps").unwrap();
    let masked = &key[key.len() - NEEDLE..];
    let mut found = 0;
    let mut page = vec![0; 4096 + NEEDLE];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let at = |hex| usize::from_str_radix(hex, 16).unwrap();
        for start in (at(start)..at(end)).step_by(4096) {
            let len = memory.read_at(&mut page, start as u64).unwrap_or(0);
            let window = |at: usize| {
                let here = &page[at..at + NEEDLE];
                here.iter().zip(masked).all(|(byte, m)| byte ^ MASK == *m)
            };
            // Matches that begin on the next page are found there.
            let last = len.saturating_sub(NEEDLE - 1).min(4096);
            found += (0..last).filter(|&at| window(at)).count();
            page.fill(0);
        }
    }
    found
}

#[test]
fn nothing_of_a_key_is_left_when_its_sa_is_gone() {
    let mut random = File::open("/dev/urandom").unwrap();
    for suite in &SUITES {
        for choice in [Choice::Auto, Choice::Only(Provider::OpenSsl)] {
            let mut masked = vec![0; suite.keymat_len()];
            std::io::Read::read_exact(&mut random, &mut masked).unwrap();
            let outbound = OutboundSa::new(spec(suite, &masked), Lease { first: 1, last: 9 });
            let outbound = outbound.unwrap();
            let inbound = InboundSa::new(spec(suite, &masked), 0);
            let codecs = (outbound.sealer(&choice), inbound.opener(&choice));
            let (Ok(SaSealer::Plain(mut sealer)), Ok(SaOpener::Plain(mut opener))) = codecs else {
                panic!("{suite}: no plain AEAD");
            };
            let mut packet = vec![7; 100 + TRAILER_ROOM];
            let mut esp = vec![0; sealer.esp_len(100)];
            sealer.seal(1, &mut packet, 100, 4, &mut esp).unwrap();
            let mut text = vec![0; opener.text_len(esp.len()).unwrap()];
            opener.decap(&inbound.window, &esp, &mut text).unwrap();
            let key = &masked[..suite.key_len];
            assert!(places(key) >= 2, "{suite}: the search finds no key");
            drop((sealer, opener, outbound, inbound));
            assert_eq!(places(key), 0, "{suite} {choice:?}");
        }
    }
}
