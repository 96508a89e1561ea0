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
use esp_linux::bpf::{Steering, accept, steer};
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
        let group =
            UdpSocket::bind_group(&options(local), ALL, &Steering::by_spi(COUNT).unwrap()).unwrap();
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
    let group = UdpSocket::bind_group(
        &options("127.0.0.1:0"),
        ALL,
        &Steering::by_spi(COUNT).unwrap(),
    )
    .unwrap();
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
    let group = UdpSocket::bind_group(
        &options("127.0.0.1:0"),
        ALL,
        &Steering::by_spi(COUNT).unwrap(),
    )
    .unwrap();
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
        let group =
            RawSocket::bind_group(&options(local), &Steering::by_spi(COUNT).unwrap()).unwrap();
        let sender = RawSocket::bind_group(&options(local), &Steering::by_spi(1).unwrap())
            .unwrap()
            .remove(0);
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
        let group =
            RawSocket::bind_group(&options(local), &Steering::by_spi(COUNT).unwrap()).unwrap();
        let sender = RawSocket::bind_group(&options(local), &Steering::by_spi(1).unwrap())
            .unwrap()
            .remove(0);
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
        let socket = RawSocket::bind_group(&options(local), &Steering::by_spi(1).unwrap())
            .unwrap()
            .remove(0);
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
        let socket = RawSocket::bind_group(&options(local), &Steering::by_spi(1).unwrap())
            .unwrap()
            .remove(0);
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

/// A list that places SPIs elsewhere than their remainder, at both ends of every leaf.
fn listed() -> Steering {
    let spis = spis().into_iter().filter(|spi| spi % 2 == 0);
    let extra = (0..200).map(|n| 0xa000_0000 + 7 * n);
    let listed = spis.chain(extra).map(|spi| (spi, (spi + 1) % COUNT));
    Steering::by_list(COUNT, listed.collect()).unwrap()
}

#[test]
fn udp_packets_of_listed_spis_go_where_the_list_says_also_after_a_change_of_the_group() {
    let _netns = Netns::enter_new();
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let by_spi = Steering::by_spi(COUNT).unwrap();
        let group = UdpSocket::bind_group(&options(local), ALL, &by_spi).unwrap();
        let sender = udp(local, ALL);
        let all: Vec<u32> = spis().into_iter().chain(listed().listed()).collect();
        for steering in [&listed(), &by_spi, &listed()] {
            group[0].steer(steering).unwrap();
            for &spi in &all {
                let message = Transmit {
                    dst: address(&group[0]),
                    payload: &esp(spi, 0),
                    segment_size: 0,
                    tos: 0,
                };
                assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
            }
            for (index, socket) in (0..).zip(&group) {
                let here = |spi: &&u32| steering.index_of(**spi) == index;
                let expected: Vec<_> = all.iter().filter(here).map(|&spi| (spi, 0)).collect();
                let got = receive_udp(socket, expected.len());
                let packets: Vec<_> = got.into_iter().map(|(_, bytes)| bytes).collect();
                assert_eq!(seen(&packets, 0), expected);
            }
        }
    }
}

#[test]
fn raw_packets_come_by_one_of_two_steerings_while_one_replaces_the_other() {
    let _netns = Netns::enter_new();
    let (before, after) = (Steering::by_spi(COUNT).unwrap(), listed());
    for (local, offset) in [("127.0.0.1:0", 20), ("[::1]:0", 0)] {
        let group = RawSocket::bind_group(&options(local), &before).unwrap();
        let one = Steering::by_spi(1).unwrap();
        let sender = RawSocket::bind_group(&options(local), &one)
            .unwrap()
            .remove(0);
        for steerings in [&[&before, &after][..], &[&after], &[&before]] {
            for (index, socket) in (0..).zip(&group) {
                socket.accept(index, steerings).unwrap();
            }
            let all: Vec<u32> = spis().into_iter().chain(after.listed()).collect();
            for chunk in all.chunks(64) {
                let packets: Vec<_> = chunk.iter().map(|&spi| esp(spi, 0)).collect();
                let messages = packets.iter().map(|payload| Transmit {
                    dst: local.parse().unwrap(),
                    payload,
                    segment_size: 0,
                    tos: 0,
                });
                let outcome = sender.send_batch(&mut SendArena::new(64), messages);
                assert_eq!(outcome, Ok(SendOutcome::Sent(chunk.len())));
                for (index, socket) in (0..).zip(&group) {
                    let here = |spi: &u32| steerings.iter().any(|s| s.index_of(*spi) == index);
                    let expected: Vec<_> = chunk.iter().copied().filter(here).collect();
                    let got = receive(socket, expected.len(), |arena, buffers| {
                        let buffers = buffers.iter_mut().map(Vec::as_mut_slice);
                        socket.recv_batch(arena, buffers).unwrap().to_vec()
                    });
                    let packets: Vec<_> = got.into_iter().map(|(_, bytes)| bytes).collect();
                    let spis = seen(&packets, offset).into_iter().map(|(spi, _)| spi);
                    assert!(spis.eq(expected));
                    assert!(!readable(socket, Duration::ZERO));
                }
            }
        }
    }
}

#[test]
fn the_longest_list_fits_into_the_option_memory_of_older_kernels() {
    let _netns = Netns::enter_new();
    // The highest bit makes each comparison an instruction longer in the kernel's form.
    let spis = (0..Steering::MAX_LISTED as u32).map(|n| (0xf000_0000 + n, n % COUNT));
    let longest = Steering::by_list(COUNT, spis.collect()).unwrap();
    let limit = "/proc/sys/net/core/optmem_max";
    let before = std::fs::read_to_string(limit).unwrap();
    // Of this namespace alone from Linux 6.7 on; the machine's own before.
    let shrunk = std::fs::write(limit, "20480").is_ok();
    let group = UdpSocket::bind_group(&options("127.0.0.1:0"), ALL, &longest);
    let raw = RawSocket::bind_group(&options("[::1]:0"), &longest);
    let raw4 = RawSocket::bind_group(&options("127.0.0.1:0"), &longest);
    std::fs::write(limit, before.trim()).unwrap();
    assert!(shrunk);
    assert!(group.is_ok() && raw.is_ok() && raw4.is_ok());
}

#[test]
fn impossible_steering_is_refused() {
    let _netns = Netns::enter_new();
    let socket = udp("127.0.0.1:0", ALL);
    let too_many = (0..=Steering::MAX_LISTED as u32).map(|n| (256 + n, 0));
    for refused in [
        Steering::by_spi(0),
        Steering::by_list(0, vec![]),
        Steering::by_list(2, vec![(256, 2)]),
        Steering::by_list(2, vec![(256, 0), (256, 1)]),
        Steering::by_list(2, too_many.collect()),
    ] {
        assert!(matches!(refused, Err(Error::Argument(_))));
    }
    let three = Steering::by_spi(3).unwrap();
    steer(&socket, &three).unwrap();
    for (index, steerings) in [(0, &[][..]), (3, &[&three]), (4, &[&three])] {
        let refused = accept(&socket, true, index, steerings);
        assert!(matches!(refused, Err(Error::Argument(_))));
    }
}
