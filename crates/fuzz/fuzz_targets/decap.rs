//! An ESP packet is accepted only if it is, byte for byte, a sealed one whose number is in the
//! window and new. Its payload is then the sealed one.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::Arbitrary;
use esp_core::DropReason;
use esp_core::esp::decap::{Opener, classify};
use esp_core::esp::encap::Sealer;
use esp_core::esp::replay::ReplayWindow;
use esp_core::esp::suite::{SUITES, TRAILER_ROOM};
use esp_core::provider::Provider;
use esp_fuzz::{Changes, change};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    suite: u8,
    esn: bool,
    window: u16,
    /// Beginning of the peer's numbers, with ESN.
    epoch: u8,
    packets: Vec<Packet>,
}

#[derive(Arbitrary, Debug)]
struct Packet {
    /// From the lowest number of all.
    seq: u16,
    payload_len: u16,
    next_header: u8,
    changes: Changes,
    cut: u8,
    added: u8,
}

fuzz_target!(|input: Input| {
    let suite = &SUITES[usize::from(input.suite) % SUITES.len()];
    let aead = || {
        let key = vec![7; suite.key_len];
        Provider::OpenSsl
            .aead(suite, &key)
            .expect("OpenSSL has every suite")
    };
    let mut sealer = Sealer::new(aead(), suite, 0x1234, [1; 4], input.esn);
    let mut opener = Opener::new(aead(), suite, [1; 4], input.esn);
    let size = 64 + input.window % (8192 - 63);
    // Numbers that may cross the middle of the 64 bits.
    let first = if input.esn {
        (u64::from(input.epoch) << 32).saturating_sub(300)
    } else {
        0
    };
    let window = ReplayWindow::new(size, first);
    let mut model = Model {
        seen: BTreeSet::new(),
        highest: first,
        size: size.into(),
        first,
    };
    let mut sealed: BTreeMap<u64, Vec<u8>> = BTreeMap::new();

    for packet in input.packets.iter().take(64) {
        let seq = first + 1 + u64::from(packet.seq);
        let payload: Vec<u8> = (0..packet.payload_len % 300)
            .map(|i| i.to_le_bytes()[0])
            .collect();
        // A number is sealed once: it is the IV.
        let esp = sealed.entry(seq).or_insert_with(|| {
            let mut buf = [&payload[..], &[0; TRAILER_ROOM]].concat();
            let mut out = vec![0; sealer.esp_len(payload.len())];
            let length = sealer.seal(seq, &mut buf, payload.len(), packet.next_header, &mut out);
            assert_eq!(length, Ok(out.len()));
            out
        });
        let mut wire = esp.clone();
        wire.truncate(wire.len() - usize::from(packet.cut) % wire.len());
        wire.resize(wire.len() + usize::from(packet.added % 16), 0);
        change(&mut wire, &packet.changes);
        let as_sealed = wire == *esp;
        let _ = (classify(&wire, true), classify(&wire, false));

        let mut text = vec![0xEE; opener.text_len(wire.len()).unwrap_or_default()];
        match opener.decap(&window, &wire, &mut text) {
            Ok((opened, newest)) => {
                assert!(as_sealed, "accepted what was not sealed");
                assert_eq!(model.take(seq), Some(newest));
                let payload: Vec<u8> = (0..opened.payload_len)
                    .map(|i| i.to_le_bytes()[0])
                    .collect();
                assert_eq!(text[..opened.payload_len], payload);
            }
            Err(DropReason::Dummy) => {
                assert!(as_sealed);
                assert!(model.take(seq).is_some());
            }
            Err(reason) => {
                assert!(!as_sealed || model.take(seq).is_none(), "{reason}: {seq}");
                if reason == DropReason::AuthFailed {
                    assert!(
                        text.iter().all(|byte| *byte == 0),
                        "deciphered text is left"
                    );
                }
            }
        }
        assert_eq!(window.highest(), model.highest);
    }
});

/// RFC 4303 3.4.3 with a set of numbers.
struct Model {
    seen: BTreeSet<u64>,
    highest: u64,
    size: u64,
    first: u64,
}

impl Model {
    /// Verdict on a number; true if it is the highest so far.
    fn take(&mut self, seq: u64) -> Option<bool> {
        let new = seq > self.first && seq + self.size > self.highest && self.seen.insert(seq);
        let newest = new && seq > self.highest;
        if newest {
            self.highest = seq;
        }
        new.then_some(newest)
    }
}
