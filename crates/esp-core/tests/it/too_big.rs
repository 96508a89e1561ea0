//! ICMP errors on packets that are too big; the Python tests compare them with scapy's.

use esp_core::esp::suite::SUITES;
use esp_core::wire::{answered, packet_length, parse, too_big};

use crate::build::{Packet, sum};

fn large(v6: bool) -> Packet {
    Packet {
        v6,
        payload: vec![0x61; 1400],
        ..Packet::default()
    }
}

#[test]
fn the_error_goes_back_to_the_source_and_quotes_as_much_as_it_may() {
    for (v6, head, most) in [(false, 20, 576), (true, 40, 1280)] {
        let packet = large(v6).bytes();
        let error = too_big(&packet, 1338).unwrap();
        assert_eq!(packet_length(&error), Ok(error.len()));
        assert_eq!(error.len(), most);
        assert!(packet.starts_with(&error[head + 8..]));
        let inner = parse(&error).unwrap();
        let sent = parse(&packet).unwrap();
        assert_eq!((inner.src, inner.dst), (sent.dst, sent.src));
        let flow = answered(&error, &inner).unwrap();
        assert_eq!(
            (flow.src_port, flow.dst_port),
            (sent.dst_port, sent.src_port)
        );
        assert_eq!(error[head + 4..head + 8], 1338_u32.to_be_bytes());
        let kind = if v6 { [2, 0] } else { [3, 4] };
        assert_eq!(error[head..head + 2], kind);
        let message = &error[head..];
        let pseudo = if v6 {
            let length = message.len() as u32;
            [&error[8..40], &length.to_be_bytes(), &[0, 0, 0, 58]].concat()
        } else {
            assert_eq!(sum(&[&error[..20]]), 0xFFFF);
            Vec::new()
        };
        assert_eq!(sum(&[&pseudo, message]), 0xFFFF);
    }
}

#[test]
fn a_small_packet_of_odd_length_is_quoted_whole() {
    let packet = Packet {
        payload: vec![1; 7],
        ..Packet::default()
    }
    .bytes();
    let error = too_big(&packet, 68).unwrap();
    assert_eq!(error[28..], packet);
    assert_eq!(sum(&[&error[20..]]), 0xFFFF);
}

#[test]
fn no_error_answers_an_error_a_later_fragment_or_what_is_no_single_host() {
    let change = |v6: bool, at: usize, bytes: &[u8]| {
        let mut packet = large(v6).bytes();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        too_big(&packet, 1300).is_some()
    };
    assert!(change(false, 12, &[10, 0, 0, 1]));
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        assert!(!change(false, 12, &source), "{source:?}");
        assert!(!change(false, 16, &source), "{source:?}");
    }
    assert!(!change(true, 8, &[0; 16]));
    assert!(!change(true, 24, &[0xFF, 0x0E]));
    // The first fragment has what an error has to quote, a later one hasn't.
    assert!(change(false, 6, &[0x20, 0]));
    assert!(!change(false, 6, &[0x20, 9]));
    assert!(!change(false, 6, &[0, 9]));
    for (kind, is_answered) in [
        (8, true),
        (0, true),
        (3, false),
        (4, false),
        (5, false),
        (11, false),
    ] {
        let mut packet = large(false).bytes();
        (packet[9], packet[20]) = (1, kind);
        assert_eq!(too_big(&packet, 1300).is_some(), is_answered, "{kind}");
    }
    for (kind, is_answered) in [
        (128, true),
        (129, true),
        (1, false),
        (2, false),
        (127, false),
        (137, false),
    ] {
        let mut packet = large(true).bytes();
        (packet[6], packet[40]) = (58, kind);
        assert_eq!(too_big(&packet, 1300).is_some(), is_answered, "{kind}");
    }
}

#[test]
fn the_largest_payload_is_the_largest_that_fits() {
    for suite in &SUITES {
        for esp_len in suite.esp_len(0)..400 {
            let most = suite.max_payload(esp_len);
            assert!(suite.esp_len(most) <= esp_len);
            assert!(suite.esp_len(most + 1) > esp_len);
        }
        assert_eq!(suite.max_payload(0), 0);
    }
}
