//! The calls of the packet path allocate nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod common;

use std::io::IoSlice;
use std::time::Duration;

use common::{ALL, Netns, address, ip, options, tun_queues, udp};
use esp_core::wire::VnetHdr;
use esp_linux::bpf::Steering;
use esp_linux::mem::Slots;
use esp_linux::poll::{Events, Interest, Poller, Waker};
use esp_linux::raw::RawSocket;
use esp_linux::tun::{MAX_PACKET, TunFeatures, TunRead, TunWrite};
use esp_linux::{BatchSocket, RecvArena, SendArena, SendOutcome, Transmit};

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn sockets_reuse_their_arenas_and_buffers() {
    let _netns = Netns::enter_new();
    let (sender, receiver) = (udp("127.0.0.1:0", ALL), udp("127.0.0.1:0", ALL));
    let raw = RawSocket::bind_group(&options("127.0.0.1:0"), &Steering::by_spi(1).unwrap())
        .unwrap()
        .remove(0);
    let (mut outgoing, mut incoming) = (SendArena::new(32), RecvArena::new(32));
    let mut slots = Slots::new(32, 65_535).unwrap();
    let payload = [7; 3000];
    let message = Transmit {
        dst: address(&receiver),
        payload: &payload,
        segment_size: 1000,
        tos: 3,
    };
    let counted = allocation_counter::measure(|| {
        for _ in 0..10 {
            assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
            let outcome = sender.send_batch(&mut outgoing, [message; 20]);
            assert_eq!(outcome, Ok(SendOutcome::Sent(20)));
            let got = receiver
                .recv_batch(&mut incoming, slots.iter_mut())
                .unwrap();
            assert_eq!(got.len(), 21);
            assert_eq!(got[20].segment_size, 1000);
            let outcome = raw.send_batch(&mut outgoing, [message; 5]);
            assert_eq!(outcome, Ok(SendOutcome::Sent(5)));
            let got = raw.recv_batch(&mut incoming, slots.iter_mut()).unwrap();
            assert_eq!(got.len(), 5);
            let none = receiver.recv_batch(&mut incoming, slots.iter_mut());
            assert_eq!(none, Ok(&[][..]));
        }
    });
    assert_eq!(counted.count_total, 0);
}

#[test]
fn queues_and_polling_reuse_their_buffers() {
    let _netns = Netns::enter_new();
    let [queue] = tun_queues("tun0", TunFeatures::all());
    ip("address add 192.0.2.1/24 dev tun0");
    ip("link set tun0 up");
    let sender = udp("192.0.2.1:0", ALL);
    let message = Transmit {
        dst: "192.0.2.2:9".parse().unwrap(),
        payload: &[7; 3000],
        segment_size: 1000,
        tos: 0,
    };
    let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
    poller.add(&queue, 1, Interest::READ).unwrap();
    poller.add(&waker, 2, Interest::READ).unwrap();
    let mut events = Events::new(8);
    let mut buffer = vec![0; MAX_PACKET];
    let counted = allocation_counter::measure(|| {
        for _ in 0..10 {
            assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
            waker.wake().unwrap();
            poller
                .wait(&mut events, Some(Duration::from_secs(5)))
                .unwrap();
            assert!(
                events
                    .iter()
                    .any(|event| event.token == 1 && event.readable)
            );
            waker.clear().unwrap();
            while let TunRead::Packet(header, len) = queue.read(&mut buffer).unwrap() {
                let written = queue.write(&header, &buffer[..len]);
                assert_eq!(written, Ok(TunWrite::Written));
            }
            let (header, parts) = (VnetHdr::default().to_bytes(), [0xff; 40]);
            let parts = [IoSlice::new(&header), IoSlice::new(&parts)];
            assert_eq!(queue.write_parts(&parts), Ok(TunWrite::Invalid));
        }
    });
    assert_eq!(counted.count_total, 0);
}
