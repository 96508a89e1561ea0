//! Sockets that only send: what is received goes to the others, whatever their number and order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{ALL, NONE, Netns, address, options, readable, receive, receive_udp, udp};
use esp_linux::bpf::Steering;
use esp_linux::raw::RawSocket;
use esp_linux::udp::{UdpFeatures, UdpSocket};
use esp_linux::{BatchSocket, Errno, RecvMeta, SendArena, SendOutcome, SocketOptions, Transmit};
use rustix::net::sockopt;

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn message(dst: std::net::SocketAddr, payload: &[u8]) -> Transmit<'_> {
    Transmit {
        dst,
        payload,
        segment_size: 0,
        tos: 0,
    }
}

fn esp(spi: u32) -> [u8; 64] {
    let mut packet = [0xee; 64];
    packet[..4].copy_from_slice(&spi.to_be_bytes());
    packet
}

fn spi_at(packet: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(packet[offset..offset + 4].try_into().unwrap())
}

/// Takes send-only sockets away from any place, and adds others.
fn turn_over<S>(own: &mut Vec<S>, round: usize, open: impl Fn() -> S) {
    match round % 4 {
        0 => own.push(open()),
        1 => own.extend([open(), open()]),
        2 => drop(own.swap_remove(0)),
        _ => drop(own.remove(own.len() / 2)),
    }
}

#[test]
fn udp_packets_go_to_the_socket_of_their_spi_while_others_that_only_send_come_and_go() {
    let _netns = Netns::enter_new();
    for (local, count) in [
        (LOOPBACKS[0], 1),
        (LOOPBACKS[0], 3),
        (LOOPBACKS[1], 1),
        (LOOPBACKS[1], 3),
    ] {
        let group = UdpSocket::bind_group(&options(local), NONE, &Steering::by_spi(count).unwrap())
            .unwrap();
        let mut own = Vec::new();
        let mut sent: BTreeMap<u32, usize> = BTreeMap::new();
        for round in 0..40 {
            // Another port each time, so that the kernel's hash would choose another socket.
            let sender = udp(local, NONE);
            for spi in 1000..1010 {
                let payload = esp(spi);
                let outcome = sender.send_gso(&message(address(&group[0]), &payload));
                assert_eq!(outcome, Ok(SendOutcome::Sent(1)));
                *sent.entry(spi % count).or_default() += 1;
            }
            // Without an SPI: a keepalive.
            let outcome = sender.send_gso(&message(address(&group[0]), &[0xff]));
            assert_eq!(outcome, Ok(SendOutcome::Sent(1)));
            *sent.entry(0).or_default() += 1;
            turn_over(&mut own, round, || {
                group[round % group.len()].send_only().unwrap()
            });
        }
        for (index, socket) in (0..).zip(&group) {
            let got = receive_udp(socket, sent[&index]);
            let others = got.iter().filter(|(_, packet)| packet.len() > 1);
            assert!(others.clone().count() > 0);
            for (_, packet) in others {
                assert_eq!(spi_at(packet, 0) % count, index);
            }
            assert!(!readable(socket, Duration::ZERO));
        }
        for socket in &own {
            assert!(!readable(socket, Duration::ZERO));
        }
    }
}

#[test]
fn raw_packets_go_to_the_socket_of_their_spi_while_others_that_only_send_come_and_go() {
    let _netns = Netns::enter_new();
    for (local, offset) in [(LOOPBACKS[0], 20), (LOOPBACKS[1], 0)] {
        for count in [1, 3] {
            let group =
                RawSocket::bind_group(&options(local), &Steering::by_spi(count).unwrap()).unwrap();
            let mut own = vec![group[0].send_only().unwrap()];
            let mut sent: BTreeMap<u32, usize> = BTreeMap::new();
            for round in 0..12 {
                let packets: Vec<_> = (1000..1010).map(esp).collect();
                let messages = packets
                    .iter()
                    .map(|packet| message(local.parse().unwrap(), packet));
                let outcome = own[0].send_batch(&mut SendArena::new(16), messages);
                assert_eq!(outcome, Ok(SendOutcome::Sent(10)));
                for spi in 1000..1010 {
                    *sent.entry(spi % count).or_default() += 1;
                }
                turn_over(&mut own, round, || group[0].send_only().unwrap());
            }
            for (index, socket) in (0..).zip(&group) {
                let got = receive(socket, sent[&index], |arena, buffers| -> Vec<RecvMeta> {
                    let buffers = buffers.iter_mut().map(Vec::as_mut_slice);
                    socket.recv_batch(arena, buffers).unwrap().to_vec()
                });
                assert!(
                    got.iter()
                        .all(|(_, packet)| spi_at(packet, offset) % count == index)
                );
                assert!(!readable(socket, Duration::ZERO));
            }
            for socket in &own {
                assert!(!readable(socket, Duration::ZERO));
            }
        }
    }
}

#[test]
fn a_socket_that_only_sends_does_so_as_the_other_does() {
    let _netns = Netns::enter_new();
    common::ip("link set lo mtu 1500");
    for local in LOOPBACKS {
        let socket = udp(local, ALL);
        let own = socket.send_only().unwrap();
        assert_eq!(own.local(), socket.local());
        assert_eq!(own.max_segments(), socket.max_segments());
        assert_eq!((own.gro(), socket.gro()), (true, true));
        let buffer = |socket: &UdpSocket| sockopt::socket_send_buffer_size(socket);
        assert_eq!(buffer(&own), buffer(&socket));
        let receiver = udp(local, NONE);
        let payload = common::pattern(5 * 1000);
        let run = Transmit {
            segment_size: 1000,
            tos: 0x2e << 2,
            ..message(address(&receiver), &payload)
        };
        assert_eq!(own.send_gso(&run), Ok(SendOutcome::Sent(1)));
        let got = receive_udp(&receiver, 5);
        assert!(
            got.iter()
                .all(|(meta, _)| (meta.src, meta.tos) == (address(&socket), 0x2e << 2))
        );
        let large = message(address(&receiver), &payload[..2000]);
        assert_eq!(own.send_gso(&large), Ok(SendOutcome::TooBig));
        own.set_may_fragment(true).unwrap();
        assert_eq!(own.send_gso(&large), Ok(SendOutcome::Sent(1)));
    }
}

#[test]
fn merging_of_what_is_received_goes_on_beside_sockets_that_only_send() {
    let _netns = Netns::enter_new();
    for local in LOOPBACKS {
        let socket = udp(local, ALL);
        let _own: Vec<_> = (0..8).map(|_| socket.send_only().unwrap()).collect();
        for _ in 0..20 {
            let sender = udp(local, ALL);
            let payload = common::pattern(10 * 1000);
            let run = Transmit {
                segment_size: 1000,
                ..message(address(&socket), &payload)
            };
            assert_eq!(sender.send_gso(&run), Ok(SendOutcome::Sent(1)));
            assert_eq!(receive_udp(&socket, 1)[0].1, payload);
        }
    }
}

#[test]
fn a_lone_socket_shares_its_port_with_no_other_program() {
    let _netns = Netns::enter_new();
    let socket = udp(LOOPBACKS[0], ALL);
    let taken = SocketOptions {
        local: address(&socket),
        ..options(LOOPBACKS[0])
    };
    let fd = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .unwrap();
    sockopt::set_socket_reuseport(&fd, true).unwrap();
    assert_eq!(rustix::net::bind(&fd, &taken.local), Err(Errno::ADDRINUSE));
    let wanted = UdpFeatures { ..NONE };
    let refused = UdpSocket::bind_group(&taken, wanted, &Steering::by_spi(1).unwrap()).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ADDRINUSE));
}
