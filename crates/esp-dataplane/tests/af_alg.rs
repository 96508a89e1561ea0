//! The AEADs of the running kernel against the libraries.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::sync::Arc;

use esp_core::esp::aead::{AuthError, MakeAead, SaAead};
use esp_core::esp::suite::{SUITES, Suite};
use esp_core::provider::{Choice, Provider};
use esp_dataplane::aead_factory::AeadFactory;
use esp_dataplane::af_alg::AfAlgKeys;
use esp_dataplane::events::{Event, Events};
use esp_linux::Errno;
use esp_linux::alg::{AlgKey, Failure, MAX_IN_FLIGHT, Operation, Request};
use esp_linux::poll::Waker;

const AADS: [&[u8]; 2] = [b"spi-seq.", b"spi-seq_hilo"];
const OPENSSL: Choice = Choice::Only(Provider::OpenSsl);

fn key(suite: &Suite) -> Vec<u8> {
    (0..32).take(suite.key_len).collect()
}

fn nonce(number: usize) -> [u8; 12] {
    let mut nonce = [3; 12];
    nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
    nonce
}

fn aeads(events: &Arc<Events>) -> AeadFactory {
    let kernel = AfAlgKeys::new(SUITES.iter().collect(), Arc::clone(events));
    AeadFactory::new(Choice::Auto, kernel)
}

/// Texts of the sizes of ESP packets, and one of 60000 bytes.
fn texts() -> Vec<Vec<u8>> {
    let sizes = [4, 8, 15, 16, 17, 64, 576, 1400, 1400, 1400, 9000, 60_000, 4];
    let text = |&size: &usize| (0..size).map(|at| u8::try_from(at * 7 % 251).unwrap());
    sizes.iter().map(|size| text(size).collect()).collect()
}

/// Seals the texts as one batch.
fn seal(aead: &mut SaAead, aad: &[u8], icv_len: usize) -> Vec<Vec<u8>> {
    let texts = texts();
    let mut outs: Vec<_> = texts.iter().map(|t| vec![0; t.len() + icv_len]).collect();
    for (number, (text, out)) in texts.iter().zip(&mut outs).enumerate() {
        let nonce = nonce(number);
        let sealed = match aead {
            SaAead::Plain(aead) => aead.seal(&nonce, aad, text, out),
            SaAead::Batched(aead) => aead.submit_seal(&nonce, aad, text, out),
        };
        sealed.unwrap();
    }
    if let SaAead::Batched(aead) = aead {
        let outs = &mut outs.iter_mut().map(Vec::as_mut_slice);
        aead.complete_seals(outs).unwrap();
    }
    outs
}

fn open(
    aead: &mut SaAead,
    nonce: &[u8; 12],
    aad: &[u8],
    sealed: &[u8],
    out: &mut [u8],
) -> Result<(), AuthError> {
    match aead {
        SaAead::Plain(aead) => aead.open(nonce, aad, sealed, out),
        SaAead::Batched(aead) => aead.complete_open(nonce, aad, sealed, out),
    }
}

/// Compares each suite's packets with those of the library; returns the events.
fn compare(suites: &'static [Suite]) -> Vec<Event> {
    let events = Arc::new(Events::new(Waker::new().unwrap()));
    let aeads = aeads(&events);
    for suite in suites {
        let (mut ours, mut theirs) = (
            aeads.make(suite, &key(suite)).unwrap(),
            OPENSSL.make(suite, &key(suite)).unwrap(),
        );
        for aad in AADS {
            let sealed = seal(&mut ours, aad, suite.icv_len);
            assert!(sealed == seal(&mut theirs, aad, suite.icv_len), "{suite}");
            for (number, (sealed, text)) in sealed.iter().zip(texts()).enumerate() {
                let mut out = vec![0xEE; text.len()];
                let mut forged = sealed.clone();
                forged[number % 4] ^= 1;
                let opened = open(&mut ours, &nonce(number), aad, &forged, &mut out);
                assert_eq!(opened, Err(AuthError));
                assert!(out.iter().all(|byte| *byte == 0));
                open(&mut ours, &nonce(number), aad, sealed, &mut out).unwrap();
                assert!(out == text, "{suite}");
            }
        }
    }
    events.take()
}

#[test]
fn the_kernel_seals_like_the_library_or_one_event_names_what_is_missing() {
    let told = compare(&SUITES);
    for event in &told {
        let Event::AfAlgLost(why) = event else {
            panic!("{event:?}");
        };
        let missing = [Errno::AFNOSUPPORT, Errno::NOENT, Errno::PERM, Errno::ACCESS];
        assert!(missing.contains(&why.errno().unwrap()), "{why}");
    }
    assert!(told.len() <= 1);
}

#[test]
fn a_check_reports_a_missing_kernel_aead_like_making_one() {
    for suite in &SUITES {
        let reported = [true, false].map(|only_check| {
            let events = Arc::new(Events::new(Waker::new().unwrap()));
            let aeads = aeads(&events);
            if only_check {
                aeads.check(suite, &key(suite)).unwrap();
            } else {
                drop(aeads.make(suite, &key(suite)).unwrap());
            }
            events.take()
        });
        assert_eq!(reported[0], reported[1], "{suite}");
    }
}

#[test]
#[ignore = "needs a kernel with AF_ALG; run it in a virtual machine"]
fn a_kernel_with_af_alg_has_every_suite() {
    assert_eq!(compare(&SUITES), []);
    let events = Arc::new(Events::new(Waker::new().unwrap()));
    let aeads = aeads(&events);
    for suite in &SUITES {
        assert!(aeads.of(suite).starts_with("AF_ALG, Linux "), "{suite}");
    }
}

/// Drivers by name: a synchronous one, and an asynchronous one that computes in kernel threads.
const PLAIN: &str = "gcm_base(ctr(aes-generic),ghash-generic)";
const PARALLEL: &str = "pcrypt(gcm_base(ctr(aes-generic),ghash-generic))";

#[test]
#[ignore = "needs a kernel with AF_ALG and pcrypt; run it in a virtual machine"]
fn each_answer_of_an_asynchronous_driver_belongs_to_its_request() {
    let suite = Suite::by_name("aes256gcm16").unwrap();
    // The kernel instantiates PARALLEL only over an instance of PLAIN.
    AlgKey::new(PLAIN, &key(suite), suite.icv_len).unwrap();
    let mut kernel = AlgKey::new(PARALLEL, &key(suite), suite.icv_len).unwrap();
    let expected = seal(&mut OPENSSL.make(suite, &key(suite)).unwrap(), AADS[0], 16);
    let packets: Vec<_> = texts()
        .into_iter()
        .zip(expected)
        .take(MAX_IN_FLIGHT)
        .collect();
    for _ in 0..50 {
        for operation in [Operation::Seal, Operation::Open] {
            for (number, (text, sealed)) in packets.iter().enumerate() {
                assert!(kernel.has_room());
                let seals = operation == Operation::Seal;
                let sent = kernel.send(&Request {
                    operation,
                    nonce: &nonce(number),
                    head: AADS[0],
                    aad_len: 8,
                    input: if seals { text } else { sealed },
                });
                sent.unwrap();
            }
            assert!(!kernel.has_room());
            let mut answers = Vec::new();
            kernel.receive(|answer| answers.push(answer.unwrap()[8..].to_vec()));
            let wanted = packets.iter().map(|(text, sealed)| match operation {
                Operation::Seal => sealed.clone(),
                Operation::Open => text.clone(),
            });
            assert!(answers == wanted.collect::<Vec<_>>());
        }
    }
    // Of several packets, only the forged one fails.
    for (number, (_, sealed)) in packets.iter().enumerate() {
        let mut sealed = sealed.clone();
        sealed[0] ^= u8::from(number == 3);
        let sent = kernel.send(&Request {
            operation: Operation::Open,
            nonce: &nonce(number),
            head: AADS[0],
            aad_len: 8,
            input: &sealed,
        });
        sent.unwrap();
    }
    let mut verdicts = Vec::new();
    kernel.receive(|answer| verdicts.push(answer.map(drop)));
    let mut wanted = vec![Ok(()); packets.len()];
    wanted[3] = Err(Failure::Forged);
    assert_eq!(verdicts, wanted);
}

#[test]
#[ignore = "needs a kernel with AF_ALG; run it in a virtual machine"]
fn a_key_leaves_no_socket_behind() {
    let open_files = || fs::read_dir("/proc/thread-self/fd").unwrap().count();
    let before = open_files();
    let suite = Suite::by_name("aes128gcm16").unwrap();
    let events = Arc::new(Events::new(Waker::new().unwrap()));
    let aeads = aeads(&events);
    let mut aead = aeads.make(suite, &key(suite)).unwrap();
    seal(&mut aead, AADS[0], 16);
    assert_eq!(open_files(), before + 1 + 1 + MAX_IN_FLIGHT);
    drop(aead);
    assert_eq!(open_files(), before + 1);
}
