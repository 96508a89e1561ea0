#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use esp_core::esp::suite::Suite;
use esp_core::provider::Choice;
use esp_linux::alg::Request;
use esp_linux::poll::Waker;
use esp_linux::{Errno, Error};

use super::*;
use crate::events::{Event, Events};

const KEY: [u8; 16] = [7; 16];
const AAD: [u8; 8] = *b"spi-seq1";
const ICV_LEN: usize = 16;
const ROOM: usize = 3;
const UNPLUGGED: Failure = Failure::Lost(Error::System {
    step: "AF_ALG recvmsg",
    errno: Errno::NODEV,
});

/// A fault of the kernel in one request.
#[derive(Clone, Copy)]
enum Fault {
    NotTaken,
    Answer(Failure),
    OtherBytes,
    OtherAad,
    Short,
    /// A forged packet is returned as authentic.
    Accepted,
}

/// A kernel with faults, by the number of the request.
struct Fake {
    library: Box<dyn Aead>,
    faults: HashMap<usize, Fault>,
    requests: usize,
    answers: Vec<(usize, Result<Vec<u8>, Failure>)>,
    /// Dropped with the key.
    _lives: Arc<()>,
}

impl KernelKey for Fake {
    fn has_room(&mut self) -> bool {
        self.answers.len() < ROOM
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), Failure> {
        assert!(self.has_room());
        let number = self.requests;
        self.requests += 1;
        let fault = self.faults.get(&number).copied();
        if let Some(Fault::NotTaken) = fault {
            return Err(UNPLUGGED);
        }
        let mut answer = request.head.to_vec();
        let aad_len = answer.len();
        let done = match request.operation {
            Operation::Seal => {
                answer.resize(aad_len + request.input.len() + ICV_LEN, 0);
                let out = &mut answer[aad_len..];
                let sealed = self
                    .library
                    .seal(request.nonce, request.head, request.input, out);
                sealed.map_err(|_| UNPLUGGED)
            }
            Operation::Open => {
                answer.resize(aad_len + request.input.len() - ICV_LEN, 0);
                let out = &mut answer[aad_len..];
                let opened = self
                    .library
                    .open(request.nonce, request.head, request.input, out);
                opened.map_err(|_| Failure::Forged)
            }
        };
        let mut answer = done.map(|()| answer);
        match fault {
            Some(Fault::Answer(failure)) => answer = Err(failure),
            Some(Fault::OtherBytes) => answer.as_mut().unwrap()[aad_len] ^= 1,
            Some(Fault::OtherAad) => answer.as_mut().unwrap()[0] ^= 1,
            Some(Fault::Short) => drop(answer.as_mut().unwrap().pop()),
            Some(Fault::Accepted) => {
                answer = Ok(request.head.iter().copied().chain([0; 100]).collect());
            }
            Some(Fault::NotTaken) | None => {}
        }
        self.answers.push((number, answer));
        Ok(())
    }

    fn receive(&mut self, each: &mut dyn FnMut(Answer<'_>)) {
        for (_, answer) in self.answers.drain(..) {
            each(answer.as_deref().map_err(|failure| *failure));
        }
    }
}

/// An AEAD over a kernel with faults.
struct Rig {
    aead: AfAlgAead<Fake>,
    events: Arc<Events>,
    lives: Arc<()>,
}

fn suite() -> &'static Suite {
    Suite::by_name("aes128gcm16").unwrap()
}

fn library() -> Box<dyn Aead> {
    Choice::Auto.aead(suite(), &KEY).unwrap()
}

fn rig<const N: usize>(faults: [(usize, Fault); N]) -> Rig {
    let events = Arc::new(Events::new(Waker::new().unwrap()));
    let kernel = Arc::new(AfAlgKeys::new(vec![suite()], Arc::clone(&events)));
    assert!(kernel.count_key());
    let lives = Arc::new(());
    let key = Fake {
        library: library(),
        faults: faults.into(),
        requests: 0,
        answers: Vec::new(),
        _lives: Arc::clone(&lives),
    };
    Rig {
        aead: AfAlgAead::new(key, library(), suite(), kernel),
        events,
        lives,
    }
}

fn nonce(number: usize) -> [u8; NONCE_LEN] {
    let mut nonce = [9; NONCE_LEN];
    nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
    nonce
}

fn text(number: usize) -> Vec<u8> {
    (0..100)
        .map(|at| u8::try_from((at * 3 + number * 7) % 256).unwrap())
        .collect()
}

fn sealed(number: usize) -> Vec<u8> {
    let mut out = vec![0; 100 + ICV_LEN];
    let sealed = library().seal(&nonce(number), &AAD, &text(number), &mut out);
    sealed.unwrap();
    out
}

impl Rig {
    /// Seals packets of these numbers as one batch.
    fn run(&mut self, numbers: std::ops::Range<usize>) -> Result<Vec<Vec<u8>>, SealError> {
        let mut outs = vec![vec![0; 100 + ICV_LEN]; numbers.len()];
        for (number, out) in numbers.zip(&mut outs) {
            let mut given = text(number);
            self.aead.submit_seal(&nonce(number), &AAD, &given, out)?;
            // As the segmenter does, which writes the next packet over this one.
            given.fill(0xEE);
        }
        self.aead
            .complete_seals(&mut outs.iter_mut().map(Vec::as_mut_slice))?;
        Ok(outs)
    }

    fn open(&mut self, sealed: &[u8], number: usize) -> Result<Vec<u8>, AuthError> {
        let mut out = vec![0xEE; 100];
        let opened = self
            .aead
            .complete_open(&nonce(number), &AAD, sealed, &mut out);
        if opened.is_err() {
            assert_eq!(out, [0; 100]);
        }
        opened.map(|()| out)
    }

    /// Submits packets and opens them, like a received buffer of datagrams.
    fn open_run(&mut self, packets: &[(usize, Vec<u8>)]) -> Vec<Result<Vec<u8>, AuthError>> {
        for (number, sealed) in packets {
            self.aead.submit_open(&nonce(*number), &AAD, sealed);
        }
        let opened = packets
            .iter()
            .map(|(number, sealed)| self.open(sealed, *number));
        opened.collect()
    }

    fn told(&self) -> Vec<String> {
        let events = self.events.take().into_iter().map(|event| match event {
            Event::AfAlgLost(why) => why.to_string(),
            other => panic!("{other:?}"),
        });
        events.collect()
    }

    fn key_is_gone(&self) -> bool {
        Arc::strong_count(&self.lives) == 1
    }
}

fn right(numbers: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    numbers.map(sealed).collect()
}

#[test]
fn the_kernel_seals_batches_of_any_length_like_the_library() {
    let mut rig = rig([]);
    let mut first = 0;
    for length in [1, 2, ROOM, ROOM + 1, 0, 3 * ROOM + 2, 1] {
        let numbers = first..first + length;
        assert_eq!(rig.run(numbers.clone()).unwrap(), right(numbers));
        first += length;
    }
    assert_eq!(rig.aead.key.as_ref().unwrap().requests, first);
    assert!(rig.told().is_empty());
}

#[test]
fn a_fault_at_any_packet_leaves_the_batch_complete_and_is_reported_once() {
    let faults = [
        (Fault::NotTaken, "AF_ALG recvmsg: "),
        (Fault::Answer(UNPLUGGED), "AF_ALG recvmsg: "),
        (Fault::Answer(Failure::Forged), "AF_ALG gave a wrong answer"),
        (Fault::OtherAad, "AF_ALG gave a wrong answer"),
        (Fault::Short, "AF_ALG gave a wrong answer"),
    ];
    for (fault, why) in faults {
        for at in 0..8 {
            let mut rig = rig([(at, fault)]);
            assert_eq!(rig.run(0..8).unwrap(), right(0..8), "fault at {at}");
            assert!(rig.key_is_gone());
            let told = rig.told();
            assert!(told.len() == 1 && told[0].starts_with(why), "{told:?}");
            assert_eq!(rig.run(8..10).unwrap(), right(8..10));
            assert!(rig.told().is_empty());
        }
    }
}

#[test]
fn the_first_packet_of_a_key_and_every_256th_are_compared_before_they_are_sent() {
    let checked = usize::try_from(CHECKED).unwrap();
    for at in [0, checked, 2 * checked] {
        let mut rig = rig([(at, Fault::OtherBytes)]);
        let numbers = 0..2 * checked + 3;
        assert!(rig.run(numbers.clone()).unwrap() == right(numbers));
        assert!(rig.key_is_gone());
        assert_eq!(rig.told(), ["AF_ALG gave a wrong answer"]);
    }
}

#[test]
fn the_first_opened_packet_and_every_256th_are_compared() {
    let checked = usize::try_from(CHECKED).unwrap();
    for fault in [Fault::OtherBytes, Fault::Accepted] {
        let mut rig = rig([(checked, fault)]);
        for number in 0..checked {
            assert_eq!(rig.open(&sealed(number), number).unwrap(), text(number));
        }
        assert_eq!(rig.told().len(), 0);
        assert_eq!(rig.open(&sealed(checked), checked).unwrap(), text(checked));
        assert_eq!(rig.told(), ["AF_ALG gave a wrong answer"]);
    }
}

#[test]
fn a_forged_packet_is_refused_and_the_kernel_stays_in_use() {
    let mut rig = rig([]);
    for number in 0..3 {
        let mut forged = sealed(number);
        forged[20] ^= 1;
        assert_eq!(rig.open(&forged, number), Err(AuthError));
        assert_eq!(rig.open(&sealed(number), number).unwrap(), text(number));
    }
    assert_eq!(rig.aead.key.as_ref().unwrap().requests, 6);
    assert!(rig.told().is_empty());
}

#[test]
fn a_packet_that_the_kernel_fails_to_open_is_opened_by_the_library() {
    let faults = [
        Fault::NotTaken,
        Fault::Answer(UNPLUGGED),
        Fault::Answer(Failure::Forged),
        Fault::OtherBytes,
        Fault::OtherAad,
        Fault::Short,
    ];
    for fault in faults {
        let mut rig = rig([(0, fault)]);
        assert_eq!(rig.open(&sealed(0), 0).unwrap(), text(0));
        assert!(rig.key_is_gone());
        assert_eq!(rig.told().len(), 1);
        assert_eq!(rig.open(&sealed(1), 1).unwrap(), text(1));
        let mut forged = sealed(2);
        forged[0] ^= 1;
        assert_eq!(rig.open(&forged, 2), Err(AuthError));
    }
}

#[test]
fn a_kernel_that_accepts_a_forged_packet_is_not_used_any_more() {
    let mut rig = rig([(0, Fault::Accepted)]);
    let mut forged = sealed(0);
    forged[20] ^= 1;
    assert_eq!(rig.open(&forged, 0), Err(AuthError));
    assert!(rig.key_is_gone());
    assert_eq!(rig.told(), ["AF_ALG gave a wrong answer"]);
}

#[test]
fn a_failure_of_one_sa_ends_the_use_of_the_kernel_for_all() {
    let mut rig = rig([]);
    assert_eq!(rig.run(0..2).unwrap(), right(0..2));
    rig.aead.kernel.disable(WRONG_ANSWER);
    assert_eq!(rig.run(2..4).unwrap(), right(2..4));
    assert!(rig.key_is_gone());
    rig.aead.kernel.disable(WRONG_ANSWER);
    assert_eq!(rig.told().len(), 1);
}

#[test]
fn a_packet_too_large_for_the_kernel_is_sealed_by_the_library() {
    let mut rig = rig([]);
    let text = vec![1; MAX_SIZE + 1];
    let (mut out, mut expected) = (vec![0; text.len() + ICV_LEN], vec![0; text.len() + ICV_LEN]);
    rig.aead
        .submit_seal(&nonce(0), &AAD, &text, &mut out)
        .unwrap();
    rig.aead
        .complete_seals(&mut std::iter::once(&mut out[..]))
        .unwrap();
    library()
        .seal(&nonce(0), &AAD, &text, &mut expected)
        .unwrap();
    assert!(out == expected);
    assert_eq!(rig.aead.key.as_ref().unwrap().requests, 0);
    assert_eq!(rig.run(1..3).unwrap(), right(1..3));
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let mut rig = rig([]);
    let mut out = [0; 100];
    assert_eq!(
        rig.aead.submit_seal(&nonce(0), &AAD, &[0; 100], &mut out),
        Err(SealError)
    );
    assert_eq!(
        rig.aead.complete_open(&nonce(0), &AAD, &[0; 8], &mut out),
        Err(AuthError)
    );
}

#[test]
fn packets_without_an_output_are_an_error_and_leave_the_next_batch_alone() {
    let mut rig = rig([]);
    let mut out = vec![0; 100 + ICV_LEN];
    rig.aead
        .submit_seal(&nonce(0), &AAD, &text(0), &mut out)
        .unwrap();
    assert_eq!(
        rig.aead.complete_seals(&mut std::iter::empty()),
        Err(SealError)
    );
    assert_eq!(rig.run(1..3).unwrap(), right(1..3));
}

fn sealed_run(numbers: std::ops::Range<usize>) -> Vec<(usize, Vec<u8>)> {
    numbers.map(|number| (number, sealed(number))).collect()
}

#[test]
fn submitted_packets_are_opened_together_and_each_once() {
    let mut rig = rig([]);
    let mut first = 0;
    // Packets beyond the kernel's queue are opened one by one.
    for length in [1, ROOM, ROOM + 2, 2] {
        let packets = sealed_run(first..first + length);
        let opened = rig.open_run(&packets);
        let texts: Vec<_> = (first..first + length).map(|n| Ok(text(n))).collect();
        assert_eq!(opened, texts);
        first += length;
    }
    assert_eq!(rig.aead.key.as_ref().unwrap().requests, first);
    assert_eq!(rig.told().len(), 0);
}

#[test]
fn submitted_packets_that_are_never_opened_hold_up_no_others() {
    let mut rig = rig([]);
    for number in 0..ROOM {
        rig.aead.submit_open(&nonce(number), &AAD, &sealed(number));
    }
    // Two that the window refused; a wrong nonce; a packet that was not submitted.
    assert_eq!(rig.open(&sealed(2), 2).unwrap(), text(2));
    assert_eq!(rig.open(&sealed(2), 3), Err(AuthError));
    assert_eq!(rig.open(&sealed(9), 9).unwrap(), text(9));
    for number in 10..10 + ROOM {
        rig.aead.submit_open(&nonce(number), &AAD, &sealed(number));
    }
    for _ in 0..2 {
        assert_eq!(rig.open(&sealed(20), 20).unwrap(), text(20));
    }
    rig.aead.submit_open(&nonce(30), &AAD, &[0; 4]);
    assert_eq!(
        rig.open_run(&sealed_run(30..32)),
        [Ok(text(30)), Ok(text(31))]
    );
    assert_eq!(rig.told().len(), 0);
}

#[test]
fn a_forged_packet_with_the_nonce_of_a_submitted_one_is_refused() {
    let mut rig = rig([]);
    assert_eq!(rig.open(&sealed(0), 0).unwrap(), text(0));
    let mut forged = sealed(1);
    forged[99] ^= 1;
    rig.aead.submit_open(&nonce(1), &AAD, &sealed(1));
    assert_eq!(rig.open(&forged, 1), Err(AuthError));
    // The submitted packet is the forged one, among genuine ones.
    let mut packets = sealed_run(2..2 + ROOM);
    packets[1].1[99] ^= 1;
    let opened = rig.open_run(&packets);
    assert_eq!(opened[1], Err(AuthError));
    assert_eq!(opened[0].as_ref().unwrap(), &text(2));
    assert_eq!(opened[2].as_ref().unwrap(), &text(4));
    assert_eq!(rig.told().len(), 0);
}

#[test]
fn a_fault_at_any_of_several_submitted_packets_leaves_each_opened() {
    let faults = [
        Fault::NotTaken,
        Fault::Answer(UNPLUGGED),
        Fault::Answer(Failure::Forged),
        Fault::OtherAad,
        Fault::Short,
    ];
    for fault in faults {
        for at in 0..ROOM {
            let mut rig = rig([(at, fault)]);
            let opened = rig.open_run(&sealed_run(0..5));
            assert_eq!(opened, (0..5).map(|n| Ok(text(n))).collect::<Vec<_>>());
            assert!(rig.key_is_gone());
            assert_eq!(rig.told().len(), 1, "fault at {at}");
        }
    }
}

/// A library that fails to seal with one nonce.
struct Failing(Box<dyn Aead>, [u8; NONCE_LEN]);

impl Aead for Failing {
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        if *nonce == self.1 {
            return Err(SealError);
        }
        self.0.seal(nonce, aad, text, out)
    }

    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        self.0.open(nonce, aad, sealed, out)
    }
}

#[test]
fn a_packet_that_neither_kernel_nor_library_seals_fails_its_batch_alone() {
    // The kernel fails at the second packet, which shows when the fourth finds the queue full.
    let mut rig = rig([(1, Fault::Answer(UNPLUGGED))]);
    rig.aead.library = Box::new(Failing(library(), nonce(1)));
    let mut outs = vec![vec![0; 100 + ICV_LEN]; 5];
    for (number, out) in outs.iter_mut().enumerate() {
        let submitted = rig
            .aead
            .submit_seal(&nonce(number), &AAD, &text(number), out);
        assert!(submitted.is_ok(), "packet {number}");
    }
    let completed = rig
        .aead
        .complete_seals(&mut outs.iter_mut().map(Vec::as_mut_slice));
    assert!(completed.is_err());
    assert_eq!(rig.run(5..8).unwrap(), right(5..8));
}
