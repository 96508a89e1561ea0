use esp_core::DropReason;
use esp_core::esp::aead::AuthError;
use esp_core::esp::decap::{Datagram, Opened, Opener, SaOpener, classify, read_trailer};
use esp_core::esp::encap::{SaSealer, Sealer};
use esp_core::esp::replay::ReplayWindow;
use esp_core::esp::sa::{InboundSa, KeyMaterial, OutboundSa, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::esp::suite::{SUITES, Suite, TRAILER_ROOM};
use esp_core::provider::{Choice, Provider};
use proptest::prelude::*;

use crate::spec::tunnel;

fn spec(suite: &'static Suite, esn: bool) -> SaSpec {
    let keymat: Vec<u8> = (0..suite.keymat_len()).map(|i| i as u8).collect();
    let keymat = KeyMaterial::new(suite, &keymat).unwrap();
    SaSpec {
        esn,
        ..tunnel(suite, keymat)
    }
}

fn codecs(suite: &'static Suite, esn: bool, provider: Provider) -> Option<(Sealer, Opener)> {
    let outbound = OutboundSa::new(spec(suite, esn), Lease { first: 1, last: 9 }).unwrap();
    let inbound = InboundSa::new(spec(suite, esn), 0);
    let sealer = outbound.sealer(&Choice::Only(provider)).ok()?;
    let opener = inbound.opener(&Choice::Only(provider)).ok()?;
    let (SaSealer::Plain(sealer), SaOpener::Plain(opener)) = (sealer, opener) else {
        panic!("{provider:?}: a library's AEAD is plain");
    };
    Some((sealer, opener))
}

fn suite() -> impl Strategy<Value = &'static Suite> {
    (0..SUITES.len()).prop_map(|i| &SUITES[i])
}

fn seal(sealer: &mut Sealer, seq: u64, payload: &[u8], next_header: u8) -> Vec<u8> {
    let mut buf = [payload, &[0xEE; TRAILER_ROOM]].concat();
    let mut out = vec![0; sealer.esp_len(payload.len())];
    let length = sealer
        .seal(seq, &mut buf, payload.len(), next_header, &mut out)
        .unwrap();
    assert_eq!(length, out.len());
    out
}

type OpenResult = Result<(Vec<u8>, u8, bool), DropReason>;

fn open(opener: &mut Opener, window: &ReplayWindow, esp: &[u8]) -> OpenResult {
    let mut text = vec![0xEE; opener.text_len(esp.len())?];
    let (
        Opened {
            payload_len,
            next_header,
        },
        newest,
    ) = opener.decap(window, esp, &mut text)?;
    text.truncate(payload_len);
    Ok((text, next_header, newest))
}

proptest! {
    #[test]
    fn what_is_sealed_opens(
        suite in suite(), esn in any::<bool>(), seq in 1..=u64::from(u32::MAX),
        payload in prop::collection::vec(any::<u8>(), 0..2000), next_header in any::<u8>(),
    ) {
        prop_assume!(next_header != 59);
        for &sealing in Provider::ALL {
            for &opening in Provider::ALL {
                let (Some((mut sealer, _)), Some((_, mut opener))) =
                    (codecs(suite, esn, sealing), codecs(suite, esn, opening)) else { continue };
                let seq = if esn { seq << 8 } else { seq };
                let window = ReplayWindow::new(64, seq - 1);
                let esp = seal(&mut sealer, seq, &payload, next_header);
                prop_assert_eq!(esp.len() % 4, 0);
                let opened = open(&mut opener, &window, &esp);
                prop_assert_eq!(opened, Ok((payload.clone(), next_header, true)));
                prop_assert_eq!(window.highest(), seq);
            }
        }
    }

    #[test]
    fn a_packet_with_one_bit_changed_is_refused_and_leaves_nothing(
        suite in suite(), esn in any::<bool>(), place in any::<prop::sample::Index>(), bit in 0..8,
    ) {
        for &provider in Provider::ALL {
            let Some((mut sealer, mut opener)) = codecs(suite, esn, provider) else { continue };
            let window = ReplayWindow::new(64, 0);
            let mut esp = seal(&mut sealer, 5, &[0x61; 40], 4);
            let at = place.index(esp.len());
            esp[at] ^= 1_u8 << bit;
            let mut text = vec![0xEE; opener.text_len(esp.len()).unwrap()];
            let dropped = opener.decap(&window, &esp, &mut text).unwrap_err();
            // Without ESN, another number may be one that was never used.
            prop_assert!(matches!(dropped, DropReason::AuthFailed | DropReason::ReplayOld));
            if dropped == DropReason::AuthFailed {
                prop_assert!(text.iter().all(|byte| *byte == 0));
            }
            prop_assert_eq!(window.highest(), 0);
        }
    }
}

#[test]
fn openssl_has_every_suite() {
    for suite in &SUITES {
        assert!(codecs(suite, true, Provider::OpenSsl).is_some(), "{suite}");
        assert!(Provider::OpenSsl.aead(suite, &[0; 5]).is_err());
    }
}

#[test]
fn the_provider_of_a_suite_has_it_and_is_the_one_that_was_chosen() {
    for suite in &SUITES {
        let auto = Choice::Auto.of(suite);
        assert!(auto.aead(suite, &vec![0; suite.key_len]).is_ok(), "{suite}");
        for &provider in Provider::ALL {
            let name = provider.name();
            assert_eq!(Choice::by_name(name).unwrap().of(suite), provider);
            let lacks = provider.aead(suite, &vec![0; suite.key_len]).is_err();
            let gcm16 = suite.icv_len == 16 && !suite.name.ends_with("gmac");
            assert_eq!(lacks, name == "aws-lc" && !gcm16, "{suite} {name}");
            assert_eq!(auto == provider, (name == "aws-lc") == gcm16, "{suite}");
        }
    }
    assert_eq!(Choice::by_name("auto"), Some(Choice::Auto));
    assert_eq!(Choice::by_name("nss"), None);
}

#[test]
fn a_genuine_packet_that_the_window_has_passed_is_old_and_a_forged_one_is_not_authentic() {
    let (mut sealer, mut opener) = codecs(&SUITES[0], true, Provider::OpenSsl).unwrap();
    for newest in [5000, (7 << 32) + 20, (7 << 32) + 5000] {
        let window = ReplayWindow::new(64, newest);
        for seq in [newest - 64, newest - 4000] {
            let mut esp = seal(&mut sealer, seq, b"late", 4);
            let mut text = vec![0xEE; opener.text_len(esp.len()).unwrap()];
            let late = opener.decap(&window, &esp, &mut text);
            assert_eq!(late, Err(DropReason::ReplayOld), "{seq} of {newest}");
            assert!(text.iter().all(|byte| *byte == 0));
            esp[30] ^= 1;
            let forged = opener.decap(&window, &esp, &mut text);
            assert_eq!(forged, Err(DropReason::AuthFailed), "{seq} of {newest}");
            assert!(text.iter().all(|byte| *byte == 0));
        }
    }
    // The next 2^32 numbers are still reached, over any number of lost ones.
    let window = ReplayWindow::new(64, 5000);
    let esp = seal(&mut sealer, (1 << 32) + 9, b"far", 4);
    let opened = open(&mut opener, &window, &esp);
    assert_eq!(opened, Ok((b"far".to_vec(), 4, true)));
}

#[test]
fn a_number_is_accepted_once() {
    let (mut sealer, mut opener) = codecs(&SUITES[0], false, Provider::OpenSsl).unwrap();
    let window = ReplayWindow::new(64, 0);
    let first = seal(&mut sealer, 1, b"one", 4);
    let second = seal(&mut sealer, 2, b"two", 4);
    assert_eq!(
        open(&mut opener, &window, &second),
        Ok((b"two".to_vec(), 4, true))
    );
    assert_eq!(
        open(&mut opener, &window, &first),
        Ok((b"one".to_vec(), 4, false))
    );
    assert_eq!(
        open(&mut opener, &window, &first),
        Err(DropReason::ReplayDuplicate)
    );
    let later = seal(&mut sealer, 100, b"new", 4);
    assert_eq!(
        open(&mut opener, &window, &later),
        Ok((b"new".to_vec(), 4, true))
    );
    assert_eq!(
        open(&mut opener, &window, &second),
        Err(DropReason::ReplayOld)
    );
}

#[test]
fn an_sa_with_esn_does_not_open_what_one_without_sealed() {
    let (mut sealer, _) = codecs(&SUITES[0], false, Provider::OpenSsl).unwrap();
    let (_, mut opener) = codecs(&SUITES[0], true, Provider::OpenSsl).unwrap();
    let esp = seal(&mut sealer, 1, b"one", 4);
    assert_eq!(
        open(&mut opener, &ReplayWindow::new(64, 0), &esp),
        Err(DropReason::AuthFailed)
    );
}

#[test]
fn gmac_leaves_the_text_readable_and_gcm_does_not() {
    let payload = [0x61; 64];
    for (name, readable) in [("aes256gmac", true), ("aes256gcm16", false)] {
        let suite = Suite::by_name(name).unwrap();
        let (mut sealer, _) = codecs(suite, true, Provider::OpenSsl).unwrap();
        let esp = seal(&mut sealer, 1, &payload, 4);
        assert_eq!(esp.windows(64).any(|window| window == payload), readable);
    }
}

#[test]
fn dummies_and_bad_padding_are_dropped_behind_the_window() {
    let (mut sealer, mut opener) = codecs(&SUITES[0], true, Provider::OpenSsl).unwrap();
    let window = ReplayWindow::new(64, 0);
    let dummy = seal(&mut sealer, 1, b"", 59);
    assert_eq!(open(&mut opener, &window, &dummy), Err(DropReason::Dummy));
    assert_eq!(window.highest(), 1);
    assert_eq!(
        open(&mut opener, &window, &dummy),
        Err(DropReason::ReplayDuplicate)
    );
}

#[test]
fn trailers_are_read_as_rfc_4303_writes_them() {
    assert_eq!(
        read_trailer(&[9, 1, 2, 3, 3, 4]),
        Ok(Opened {
            payload_len: 1,
            next_header: 4
        })
    );
    assert_eq!(
        read_trailer(&[0, 41]),
        Ok(Opened {
            payload_len: 0,
            next_header: 41
        })
    );
    let long: Vec<u8> = (1..=255).chain([255, 4]).collect();
    assert_eq!(
        read_trailer(&long),
        Ok(Opened {
            payload_len: 0,
            next_header: 4
        })
    );
    for bad in [
        &[][..],
        &[4],
        &[1, 4],
        &[1, 2, 2, 3, 4],
        &[1, 2, 4, 3, 4],
        &[9, 0, 0, 2, 59],
    ] {
        assert_eq!(read_trailer(bad), Err(DropReason::BadPadding), "{bad:?}");
    }
    // The padding is checked before the next header.
    assert_eq!(read_trailer(&[1, 2, 2, 59]), Err(DropReason::Dummy));
}

#[test]
fn the_sizes_of_rfc_4303_hold() {
    let (_, opener) = codecs(&SUITES[0], true, Provider::OpenSsl).unwrap();
    for (length, expected) in [
        (35, Err(DropReason::TooShort)),
        (36, Ok(4)),
        (38, Err(DropReason::TooShort)),
        (40, Ok(8)),
    ] {
        assert_eq!(opener.text_len(length), expected);
    }
    assert_eq!(SUITES[0].esp_len(0), 36);
    assert_eq!(SUITES[0].esp_len(2), 36);
    assert_eq!(SUITES[2].esp_len(3), 32);
}

#[test]
fn too_little_room_is_no_panic() {
    let (mut sealer, _) = codecs(&SUITES[0], true, Provider::OpenSsl).unwrap();
    let sealed = sealer.seal(1, &mut [0; 20], 20, 4, &mut [0; 100]);
    assert_eq!(sealed, Err(DropReason::TooBig));
    let sealed = sealer.seal(1, &mut [0; 28], 20, 4, &mut [0; 50]);
    assert_eq!(sealed, Err(DropReason::TooBig));
    for suite in &SUITES {
        let mut aead = Provider::OpenSsl
            .aead(suite, &vec![0; suite.key_len])
            .unwrap();
        assert!(aead.seal(&[0; 12], &[], &[0; 8], &mut [0; 8]).is_err());
        assert_eq!(
            aead.open(&[0; 12], &[], &[0; 8], &mut [0; 8]),
            Err(AuthError)
        );
        assert_eq!(
            aead.open(&[0; 12], &[], &[0; 8], &mut [0; 80]),
            Err(AuthError)
        );
    }
}

#[test]
fn datagrams_are_told_apart() {
    assert_eq!(classify(&[0xFF], true), Ok(Datagram::Keepalive));
    assert_eq!(classify(&[0xFF], false), Err(DropReason::TooShort));
    assert_eq!(classify(&[1; 7], true), Err(DropReason::TooShort));
    assert_eq!(classify(&[0; 8], true), Err(DropReason::IkeDatagram));
    assert_eq!(classify(&[0; 8], false), Ok(Datagram::Esp(0)));
    assert_eq!(
        classify(&[0, 0, 1, 2, 0, 0, 0, 1], true),
        Ok(Datagram::Esp(0x102))
    );
}

#[test]
fn keys_are_not_shown() {
    let shown = format!("{:?}", spec(&SUITES[0], true));
    assert!(shown.contains("KeyMaterial(..)"));
    assert!(!shown.contains("1, 2, 3"));
}
