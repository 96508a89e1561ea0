//! Packets of one SPI come to one socket: UDP by a reuseport program, raw sockets by a filter each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{ALL, Netns, PATIENCE, address, options, readable, receive, receive_udp, udp};
use esp_linux::bpf::{accept_spi, steer_by_spi};
use esp_linux::raw::RawSocket;
use esp_linux::udp::UdpSocket;
use esp_linux::{BatchSocket, Error, RecvArena, SendArena, SendOutcome, Transmit};

const COUNT: u32 = 3;

/// SPIs that any steering by fewer than their 32 bits, or in the wrong byte order, would misplace.
fn spis() -> Vec<u32> {
    let edges = [256, 0xffff_ffff, 0x8000_0000, 0x0100_0000, 0x0102_0304];
    (1000..1030).chain(edges).collect()
}

fn esp(spi: u32, seq: u32) -> Vec<u8> {
    let mut packet = vec![0xee; 64];
    packet[..4].copy_from_slice(&spi.to_be_bytes());
    packet[4..8].copy_from_slice(&seq.to_be_bytes());
    packet
}

/// SPIs and sequence numbers, as they begin at `offset` of each packet.
fn seen(packets: &[Vec<u8>], offset: usize) -> Vec<(u32, u32)> {
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
    packets
        .iter()
        .map(|packet| (word(&packet[offset..]), word(&packet[offset + 4..])))
        .collect()
}

/// Expected packets of a socket if each SPI is sent once a round, in this order.
fn expected(index: u32, rounds: u32) -> Vec<(u32, u32)> {
    let of_round = |seq| spis().into_iter().map(move |spi| (spi, seq));
    let all = (0..rounds).flat_map(of_round);
    all.filter(|(spi, _)| spi % COUNT == index).collect()
}

#[test]
fn udp_packets_go_to_the_socket_of_their_spi_each_time() {
    let _netns = Netns::enter_new();
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let group = UdpSocket::bind_group(&options(local), ALL, COUNT).unwrap();
        let sender = udp(local, ALL);
        for seq in 0..3 {
            for spi in spis() {
                let message = Transmit {
                    dst: address(&group[0]),
                    payload: &esp(spi, seq),
                    segment_size: 0,
                    tos: 0,
                };
                assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
            }
        }
        for (index, socket) in (0..).zip(&group) {
            let expected = expected(index, 3);
            let got = receive_udp(socket, expected.len());
            let packets: Vec<_> = got.into_iter().map(|(_, bytes)| bytes).collect();
            assert_eq!(seen(&packets, 0), expected);
        }
    }
}

#[test]
fn keepalives_and_ike_go_to_the_first_socket() {
    let _netns = Netns::enter_new();
    let group = UdpSocket::bind_group(&options("127.0.0.1:0"), ALL, COUNT).unwrap();
    let sender = udp("127.0.0.1:0", ALL);
    let not_esp: [&[u8]; 4] = [&[0xff], b"", &[1, 2, 3], &[0, 0, 0, 0, 0xaa, 0xbb]];
    for payload in not_esp {
        let message = Transmit {
            dst: address(&group[0]),
            payload,
            segment_size: 0,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
    }
    let got = receive_udp(&group[0], not_esp.len());
    assert!(got.iter().map(|(_, bytes)| &bytes[..]).eq(not_esp));
}

#[test]
fn a_super_packet_goes_where_its_first_packet_does() {
    let _netns = Netns::enter_new();
    let group = UdpSocket::bind_group(&options("127.0.0.1:0"), ALL, COUNT).unwrap();
    let sender = udp("127.0.0.1:0", ALL);
    for first in 3000..3000 + COUNT {
        let payload: Vec<_> = (first..first + 5).flat_map(|spi| esp(spi, 0)).collect();
        let message = Transmit {
            dst: address(&group[0]),
            payload: &payload,
            segment_size: 64,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        let socket = &group[(first % COUNT) as usize];
        assert_eq!(receive_udp(socket, 1)[0].1, payload);
    }
}

#[test]
fn raw_packets_go_to_the_socket_of_their_spi_only() {
    let _netns = Netns::enter_new();
    for (local, offset) in [("127.0.0.1:0", 20), ("[::1]:0", 0)] {
        let group = RawSocket::bind_group(&options(local), COUNT).unwrap();
        let sender = RawSocket::bind_group(&options(local), 1).unwrap().remove(0);
        let mut arena = SendArena::new(64);
        for seq in 0..2 {
            let packets: Vec<_> = spis().iter().map(|&spi| esp(spi, seq)).collect();
            let messages = packets.iter().map(|payload| Transmit {
                dst: local.parse().unwrap(),
                payload,
                segment_size: 0,
                tos: 0,
            });
            let outcome = sender.send_batch(&mut arena, messages);
            assert_eq!(outcome, Ok(SendOutcome::Sent(spis().len())));
        }
        for (index, socket) in (0..).zip(&group) {
            let expected = expected(index, 2);
            let got = receive(socket, expected.len(), |arena, buffers| {
                let buffers = buffers.iter_mut().map(Vec::as_mut_slice);
                socket.recv_batch(arena, buffers).unwrap().to_vec()
            });
            let packets: Vec<_> = got.into_iter().map(|(_, bytes)| bytes).collect();
            assert_eq!(seen(&packets, offset), expected);
            assert!(
                !readable(socket, Duration::ZERO),
                "more came than it should"
            );
        }
    }
}

#[test]
fn raw_packets_without_a_whole_spi_go_to_the_first_socket() {
    let _netns = Netns::enter_new();
    for (local, offset) in [("127.0.0.1:0", 20), ("[::1]:0", 0)] {
        let group = RawSocket::bind_group(&options(local), COUNT).unwrap();
        let sender = RawSocket::bind_group(&options(local), 1).unwrap().remove(0);
        let mut arena = SendArena::new(8);
        let short: [&[u8]; 4] = [&[1, 2, 3], &[], &[0xff], &[0, 0]];
        let messages = short.iter().map(|payload| Transmit {
            dst: local.parse().unwrap(),
            payload,
            segment_size: 0,
            tos: 0,
        });
        assert_eq!(
            sender.send_batch(&mut arena, messages),
            Ok(SendOutcome::Sent(4))
        );
        let [first, others @ ..] = &group[..] else {
            panic!("no group")
        };
        let got = receive(first, short.len(), |arena, buffers| {
            let buffers = buffers.iter_mut().map(Vec::as_mut_slice);
            first.recv_batch(arena, buffers).unwrap().to_vec()
        });
        assert!(got.iter().map(|(_, bytes)| &bytes[offset..]).eq(short));
        for other in others {
            assert!(!readable(other, Duration::ZERO));
        }
    }
}

#[test]
fn raw_packets_come_with_their_ip_header_over_ipv4_and_without_over_ipv6() {
    let _netns = Netns::enter_new();
    for (local, header_len) in [("127.0.0.1:0", 20), ("[::1]:0", 0)] {
        let socket = RawSocket::bind_group(&options(local), 1).unwrap().remove(0);
        assert_eq!(socket.has_ip_header(), header_len != 0);
        let packets: Vec<_> = [20, 1400, 21, 9000].map(common::pattern).into();
        let messages = packets.iter().zip(1u8..).map(|(payload, tos)| Transmit {
            // Port and segments are UDP's and must do nothing here.
            dst: (local.parse::<std::net::SocketAddr>().unwrap().ip(), 4500).into(),
            payload,
            segment_size: 7,
            tos: tos << 2 | 1,
        });
        let outcome = socket.send_batch(&mut SendArena::new(8), messages);
        assert_eq!(outcome, Ok(SendOutcome::Sent(4)));
        let mut buffers = vec![vec![0; 2000]; 8];
        let mut arena = RecvArena::new(8);
        assert!(readable(&socket, PATIENCE));
        let mut seen = BTreeSet::new();
        let slices = buffers.iter_mut().map(Vec::as_mut_slice);
        let metas = socket.recv_batch(&mut arena, slices).unwrap().to_vec();
        for (i, meta) in metas.iter().enumerate() {
            let bytes = &buffers[i][..meta.len];
            let whole = header_len + packets[i].len();
            assert_eq!(meta.truncated, whole > 2000);
            assert_eq!(bytes.len(), whole.min(2000));
            assert_eq!(bytes[header_len..], packets[i][..bytes.len() - header_len]);
            assert_eq!(meta.src, local.parse().unwrap());
            assert_eq!(meta.segment_size, meta.len);
            seen.insert(meta.tos);
        }
        assert_eq!(seen, BTreeSet::from([5, 9, 13, 17]));
    }
}

#[test]
fn raw_packets_over_the_mtu_are_too_big() {
    let _netns = Netns::enter_new();
    common::ip("link set lo mtu 1500");
    for (local, largest) in [("127.0.0.1:0", 1480), ("[::1]:0", 1460)] {
        let socket = RawSocket::bind_group(&options(local), 1).unwrap().remove(0);
        let payload = common::pattern(3000);
        let send = |len: usize| {
            let message = Transmit {
                dst: local.parse().unwrap(),
                payload: &payload[..len],
                segment_size: 0,
                tos: 0,
            };
            socket
                .send_batch(&mut SendArena::new(1), [message])
                .unwrap()
        };
        assert_eq!(send(largest), SendOutcome::Sent(1));
        assert_eq!(send(largest + 1), SendOutcome::TooBig);
        socket.set_may_fragment(true).unwrap();
        assert_eq!(send(largest + 1), SendOutcome::Sent(1));
    }
}

#[test]
fn steering_to_no_socket_is_refused() {
    let _netns = Netns::enter_new();
    let socket = udp("127.0.0.1:0", ALL);
    assert!(matches!(steer_by_spi(&socket, 0), Err(Error::Argument(_))));
    for (index, count) in [(0, 0), (3, 3), (4, 3)] {
        let refused = accept_spi(&socket, true, index, count);
        assert!(matches!(refused, Err(Error::Argument(_))));
    }
}
