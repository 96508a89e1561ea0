use esp_core::esp::decap::Opener;
use esp_core::esp::encap::Sealer;
use esp_core::esp::replay::ReplayWindow;
use esp_core::esp::suite::{Suite, TEXT_OFFSET};
use esp_core::provider::Provider;
use serde::Deserialize;

const GCM: &str = include_str!("../../../../tests/vectors/esp_gcm.json");
const CHACHA: &str = include_str!("../../../../tests/vectors/esp_chacha20poly1305.json");

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    suite: String,
    key: String,
    salt: String,
    spi: String,
    seq: String,
    iv: String,
    plaintext: String,
    packet: String,
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn cases(minimum: usize) -> Vec<Case> {
    let all: Vec<Case> = [GCM, CHACHA]
        .iter()
        .flat_map(|text| serde_json::from_str::<Vectors>(text).unwrap().cases)
        .collect();
    assert!(all.len() >= minimum);
    all
}

#[test]
fn packets_of_the_rfcs_open_to_their_plaintext() {
    for case in cases(5) {
        let suite = Suite::by_name(&case.suite).unwrap();
        let packet = hex(&case.packet);
        let seq_bytes = hex(&case.seq);
        let seq = seq_bytes
            .iter()
            .fold(0, |seq, byte| seq << 8 | u64::from(*byte));
        for &provider in Provider::ALL {
            let Ok(aead) = provider.aead(suite, &hex(&case.key)) else {
                continue;
            };
            let salt = hex(&case.salt).try_into().unwrap();
            let mut opener = Opener::new(aead, suite, salt, seq_bytes.len() == 8);
            let window = ReplayWindow::new(64, seq - 1);
            assert_eq!(opener.check(&window, &packet), Ok(seq), "{}", case.name);
            let mut text = vec![0; opener.text_len(packet.len()).unwrap()];
            opener.open(seq, &packet, &mut text).unwrap();
            assert_eq!(text, hex(&case.plaintext), "{}", case.name);
        }
    }
}

#[test]
fn plaintext_of_the_rfcs_seals_to_their_packets() {
    for case in cases(5) {
        let suite = Suite::by_name(&case.suite).unwrap();
        let (packet, text) = (hex(&case.packet), hex(&case.plaintext));
        for &provider in Provider::ALL {
            let Ok(mut aead) = provider.aead(suite, &hex(&case.key)) else {
                continue;
            };
            let nonce = [hex(&case.salt), hex(&case.iv)]
                .concat()
                .try_into()
                .unwrap();
            let aad = [hex(&case.spi), hex(&case.seq)].concat();
            let mut sealed = vec![0; text.len() + suite.icv_len];
            aead.seal(&nonce, &aad, &text, &mut sealed).unwrap();
            assert_eq!(sealed, packet[TEXT_OFFSET..], "{}", case.name);
        }
    }
}

#[test]
fn a_sealed_packet_has_its_number_as_the_iv_and_the_padding_of_rfc_4303() {
    let suite = Suite::by_name("aes128gcm12").unwrap();
    let make = || Provider::OpenSsl.aead(suite, &[7; 16]).unwrap();
    let mut sealer = Sealer::new(make(), suite, 0x0102_0304, [9; 4], true);
    let seq = 0x0506_0708_090A_0B0C;
    let mut buf = *b"payload\0\0\0\0\0\0\0\0";
    let mut out = [0; 64];
    let length = sealer.seal(seq, &mut buf, 7, 41, &mut out).unwrap();
    assert_eq!(length, 16 + 12 + 12);
    assert_eq!(out[..8], [1, 2, 3, 4, 9, 0xA, 0xB, 0xC]);
    assert_eq!(out[8..16], seq.to_be_bytes());
    let nonce = [9, 9, 9, 9, 5, 6, 7, 8, 9, 0xA, 0xB, 0xC];
    let aad = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0xA, 0xB, 0xC];
    let mut text = [0; 12];
    make()
        .open(&nonce, &aad, &out[16..length], &mut text)
        .unwrap();
    assert_eq!(&text, b"payload\x01\x02\x03\x03\x29");
}
