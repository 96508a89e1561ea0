//! UDP sockets over the loopback and veth of a network namespace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod common;

use std::time::Duration;

use common::{
    ALL, NONE, Netns, PATIENCE, address, eventually, ip, options, pattern, readable, receive_udp,
    udp,
};
use esp_linux::bpf::Steering;
use esp_linux::udp::{MAX_GSO_PAYLOAD_V4, MAX_GSO_PAYLOAD_V6, UdpFeatures, UdpSocket, path_mtu};
use esp_linux::{
    BatchSocket, Errno, Error, RecvArena, SendArena, SendOutcome, SocketOptions, Transmit,
};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

#[test]
fn a_gso_run_is_received_as_one_with_gro() {
    let _netns = Netns::enter_new();
    for local in LOOPBACKS {
        let (sender, receiver) = (udp(local, ALL), udp(local, ALL));
        assert!(receiver.gro());
        let payload = pattern(40 * 1400 + 333);
        let message = Transmit {
            dst: address(&receiver),
            payload: &payload,
            segment_size: 1400,
            tos: 0x2e << 2 | 2,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        let [(meta, bytes)] = &receive_udp(&receiver, 1)[..] else {
            panic!("not one message")
        };
        assert_eq!(bytes, &payload);
        assert_eq!((meta.segment_size, meta.truncated), (1400, false));
        assert_eq!((meta.src, meta.tos), (address(&sender), message.tos));
    }
}

#[test]
fn a_gso_run_is_received_as_datagrams_without_gro() {
    let _netns = Netns::enter_new();
    for local in LOOPBACKS {
        let (sender, receiver) = (udp(local, ALL), udp(local, NONE));
        let payload = pattern(4 * 1000 + 1);
        let message = Transmit {
            dst: address(&receiver),
            payload: &payload,
            segment_size: 1000,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        let got = receive_udp(&receiver, 5);
        for ((meta, bytes), sent) in got.iter().zip(payload.chunks(1000)) {
            assert_eq!(bytes, sent);
            assert_eq!((meta.segment_size, meta.tos), (sent.len(), 0));
        }
    }
}

#[test]
fn a_batch_of_mixed_sizes_and_tos_arrives_in_order() {
    let _netns = Netns::enter_new();
    for local in LOOPBACKS {
        let (sender, receiver) = (udp(local, ALL), udp(local, ALL));
        let dst = address(&receiver);
        let sizes = [0, 1, 1400, 64, 9000, 0, 65_000, 3, 3, 2];
        let payloads: Vec<_> = sizes.iter().map(|&size| pattern(size)).collect();
        let mut arena = SendArena::new(16);
        let messages = payloads.iter().zip(0u8..).map(|(payload, tos)| Transmit {
            dst,
            payload,
            segment_size: 0,
            tos,
        });
        let outcome = sender.send_batch(&mut arena, messages);
        assert_eq!(outcome, Ok(SendOutcome::Sent(sizes.len())));
        let got = receive_udp(&receiver, sizes.len());
        for (i, (meta, bytes)) in got.iter().enumerate() {
            assert_eq!(bytes, &payloads[i]);
            assert_eq!((meta.tos, meta.segment_size), (i as u8, sizes[i]));
        }
    }
}

#[test]
fn a_batch_may_hold_runs_to_several_peers() {
    let _netns = Netns::enter_new();
    let (sender, one, two) = (
        udp("127.0.0.1:0", ALL),
        udp("127.0.0.1:0", ALL),
        udp("127.0.0.1:0", ALL),
    );
    let payload = pattern(5000);
    let messages = [(&one, 500), (&two, 700), (&one, 0)].map(|(to, segment_size)| Transmit {
        dst: address(to),
        payload: &payload,
        segment_size,
        tos: 0,
    });
    let outcome = sender.send_batch(&mut SendArena::new(8), messages);
    assert_eq!(outcome, Ok(SendOutcome::Sent(3)));
    let sizes = |socket, count| -> Vec<usize> {
        let got = receive_udp(socket, count);
        assert!(got.iter().all(|(_, bytes)| bytes == &payload));
        got.iter().map(|(meta, _)| meta.segment_size).collect()
    };
    assert_eq!(sizes(&one, 2), [500, 5000]);
    assert_eq!(sizes(&two, 1), [700]);
}

#[test]
fn a_batch_takes_no_more_messages_than_the_arena_has_room_for() {
    let _netns = Netns::enter_new();
    let (sender, receiver) = (udp("127.0.0.1:0", ALL), udp("127.0.0.1:0", NONE));
    let payloads: Vec<_> = (1..=10).map(pattern).collect();
    let mut messages = payloads.iter().map(|payload| Transmit {
        dst: address(&receiver),
        payload,
        segment_size: 0,
        tos: 0,
    });
    let mut arena = SendArena::new(4);
    for sent in [4, 4, 2, 0] {
        let outcome = sender.send_batch(&mut arena, messages.by_ref());
        assert_eq!(outcome, Ok(SendOutcome::Sent(sent)));
    }
    let got = receive_udp(&receiver, 10);
    assert!(got.iter().map(|(_, bytes)| bytes).eq(&payloads));
}

#[test]
fn what_is_larger_than_its_buffer_is_marked() {
    let _netns = Netns::enter_new();
    let (sender, receiver) = (udp("127.0.0.1:0", ALL), udp("127.0.0.1:0", NONE));
    let payload = pattern(101);
    for len in [101, 100] {
        let message = Transmit {
            dst: address(&receiver),
            payload: &payload[..len],
            segment_size: 0,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
    }
    assert!(readable(&receiver, PATIENCE));
    let mut buffers = [[0; 100]; 3];
    let mut arena = RecvArena::new(3);
    let buffers = buffers.iter_mut().map(<[u8; 100]>::as_mut_slice);
    let metas = receiver.recv_batch(&mut arena, buffers).unwrap();
    let seen: Vec<_> = metas
        .iter()
        .map(|meta| (meta.len, meta.truncated))
        .collect();
    assert_eq!(seen, [(100, true), (100, false)]);
}

#[test]
fn receiving_with_nothing_there_gives_nothing() {
    let _netns = Netns::enter_new();
    let receiver = udp("127.0.0.1:0", ALL);
    let mut buffer = [0; 100];
    let mut arena = RecvArena::new(4);
    let metas = receiver.recv_batch(&mut arena, [&mut buffer[..]]);
    assert_eq!(metas, Ok(&[][..]));
}

#[test]
fn a_datagram_over_the_mtu_is_too_big_until_it_may_be_fragmented() {
    let _netns = Netns::enter_new();
    ip("link set lo mtu 1500");
    for (local, largest) in [("127.0.0.1:0", 1472), ("[::1]:0", 1452)] {
        let (sender, receiver) = (udp(local, ALL), udp(local, ALL));
        let payload = pattern(4 * 1473);
        let message = |len, segment_size| Transmit {
            dst: address(&receiver),
            payload: &payload[..len],
            segment_size,
            tos: 0,
        };
        let send = |len, size| sender.send_gso(&message(len, size)).unwrap();
        assert_eq!(send(largest, 0), SendOutcome::Sent(1));
        assert_eq!(send(largest + 1, 0), SendOutcome::TooBig);
        assert_eq!(send(2 * largest, largest as u16), SendOutcome::Sent(1));
        assert_eq!(send(4000, largest as u16 + 1), SendOutcome::TooBig);
        let mut arena = SendArena::new(2);
        let too_big_first = [message(3000, 0), message(10, 0)];
        let outcome = sender.send_batch(&mut arena, too_big_first);
        assert_eq!(outcome, Ok(SendOutcome::TooBig));
        let too_big_second = [message(10, 0), message(3000, 0)];
        let outcome = sender.send_batch(&mut arena, too_big_second);
        assert_eq!(outcome, Ok(SendOutcome::Sent(1)));
        sender.set_may_fragment(true).unwrap();
        assert_eq!(send(3000, 0), SendOutcome::Sent(1));
        sender.set_may_fragment(false).unwrap();
        assert_eq!(send(3000, 0), SendOutcome::TooBig);
    }
}

#[test]
fn the_largest_run_crosses_a_device_whole() {
    let left = Netns::enter_new();
    let right = Netns::enter_new();
    ip(&format!(
        "link add right0 type veth peer name left0 netns {}",
        left.path()
    ));
    for (netns, name, host) in [(&left, "left0", 1), (&right, "right0", 2)] {
        netns.enter();
        ip(&format!("address add 192.0.2.{host}/24 dev {name}"));
        ip(&format!("address add 2001:db8::{host}/64 dev {name} nodad"));
        ip(&format!("link set {name} up"));
    }
    for (from, to, largest) in [
        ("192.0.2.1:0", "192.0.2.2:0", MAX_GSO_PAYLOAD_V4),
        ("[2001:db8::1]:0", "[2001:db8::2]:0", MAX_GSO_PAYLOAD_V6),
    ] {
        right.enter();
        let receiver = udp(to, ALL);
        left.enter();
        let sender = udp(from, ALL);
        let payload = pattern(largest + 1);
        let mut message = Transmit {
            dst: address(&receiver),
            payload: b"is the link up?",
            segment_size: 1400,
            tos: 0,
        };
        eventually("the link comes up", || {
            sender.send_gso(&message).unwrap();
            readable(&receiver, Duration::from_millis(10))
        });
        while readable(&receiver, Duration::from_millis(100)) {
            receive_udp(&receiver, 1);
        }
        message.payload = &payload[..largest];
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        let got = receive_udp(&receiver, 1);
        assert_eq!((got[0].0.len, got[0].0.segment_size), (largest, 1400));
        assert_eq!(got[0].1, payload[..largest]);
        message.payload = &payload;
        assert!(matches!(sender.send_gso(&message), Err(Error::Argument(_))));
        // Purpose of the limit: past it the kernel splits the batch into its datagrams.
        let outcome = sender.send_batch(&mut SendArena::new(1), [message]);
        assert_eq!(outcome, Ok(SendOutcome::Sent(1)));
        assert!(receive_udp(&receiver, 2)[0].0.len < largest);
    }
}

#[test]
fn the_probed_number_of_segments_passes_and_one_more_does_not() {
    let _netns = Netns::enter_new();
    for local in LOOPBACKS {
        let (sender, receiver) = (udp(local, ALL), udp(local, ALL));
        let most = sender.max_segments();
        assert!(most == 64 || most == 128, "{most}");
        assert_eq!(sender.gso_capacity(1), most);
        let payload = pattern(most + 1);
        let mut message = Transmit {
            dst: address(&receiver),
            payload: &payload[..most],
            segment_size: 1,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        assert_eq!(receive_udp(&receiver, 1)[0].0.len, most);
        message.payload = &payload;
        assert!(matches!(sender.send_gso(&message), Err(Error::Argument(_))));
        let outcome = sender.send_batch(&mut SendArena::new(1), [message]);
        assert_eq!(outcome, Ok(SendOutcome::Invalid));
    }
}

#[test]
fn the_segments_of_a_socket_are_those_of_the_kernel_whatever_it_is_bound_to() {
    let _netns = Netns::enter_new();
    let known = udp("127.0.0.1:0", ALL).max_segments();
    for local in ["0.0.0.0:0", "[::]:0", "[::1]:0"] {
        assert_eq!(udp(local, ALL).max_segments(), known, "{local}");
    }
    // There is no such address yet.
    assert_eq!(udp("192.0.2.1:0", ALL).max_segments(), 64);
}

#[test]
fn a_run_is_limited_by_bytes_as_well() {
    let _netns = Netns::enter_new();
    let (v4, v6) = (udp("127.0.0.1:0", ALL), udp("[::1]:0", ALL));
    assert_eq!((v4.gso_capacity(1472), v6.gso_capacity(1452)), (44, 45));
    assert_eq!((v4.gso_capacity(40_000), v4.gso_capacity(70_000)), (1, 1));
    assert_eq!((v4.gso_capacity(32_746), v4.gso_capacity(32_747)), (2, 1));
    assert_eq!((v6.gso_capacity(32_736), v6.gso_capacity(32_737)), (2, 1));
    assert_eq!(v4.gso_capacity(0), v4.max_segments());
}

#[test]
fn offloads_that_are_not_wanted_are_off() {
    let _netns = Netns::enter_new();
    let only_gro = UdpFeatures {
        gso: false,
        gro: true,
    };
    let socket = udp("127.0.0.1:0", only_gro);
    assert_eq!((socket.max_segments(), socket.gso_capacity(10)), (1, 1));
    let message = Transmit {
        dst: address(&socket),
        payload: &[0; 20],
        segment_size: 10,
        tos: 0,
    };
    assert!(matches!(socket.send_gso(&message), Err(Error::Argument(_))));
    assert!(socket.gro());
    assert!(!udp("127.0.0.1:0", NONE).gro());
}

#[test]
fn a_peer_without_a_route_or_a_program_costs_only_its_own_packets() {
    let _netns = Netns::enter_new();
    let (sender, receiver) = (udp("127.0.0.1:0", ALL), udp("127.0.0.1:0", ALL));
    let mut message = Transmit {
        dst: "198.51.100.1:4500".parse().unwrap(),
        payload: b"lost",
        segment_size: 0,
        tos: 0,
    };
    let unbound = udp("0.0.0.0:0", ALL);
    let outcome = unbound.send_gso(&message);
    assert_eq!(outcome, Ok(SendOutcome::Lost(Errno::NETUNREACH)));
    message.dst = "127.0.0.1:9".parse().unwrap();
    for _ in 0..3 {
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
    }
    message.dst = address(&receiver);
    assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
    assert_eq!(receive_udp(&receiver, 1)[0].1, b"lost");
    let mut arena = RecvArena::new(1);
    let metas = sender.recv_batch(&mut arena, [&mut [0; 9][..]]);
    assert_eq!(metas, Ok(&[][..]));
}

#[test]
fn a_source_address_may_come_later_than_its_socket() {
    let _netns = Netns::enter_new();
    ip("link add left0 type veth peer name right0");
    ip("link set right0 up");
    ip("link set left0 up");
    ip("route add default dev left0");
    ip("-6 route add default dev left0");
    for (local, dst, nodad) in [
        ("192.0.2.1", "198.51.100.1:4500", ""),
        ("2001:db8::1", "[2001:db8:1::1]:4500", "nodad"),
    ] {
        let socket = udp(
            &std::net::SocketAddr::new(local.parse().unwrap(), 4500).to_string(),
            ALL,
        );
        let message = Transmit {
            dst: dst.parse().unwrap(),
            payload: b"early, and a run",
            segment_size: 4,
            tos: 0,
        };
        // IPv4 finds no way from that source; IPv6 doesn't look.
        let early = socket.send_gso(&message).unwrap();
        let lost = SendOutcome::Lost(Errno::NETUNREACH);
        assert!(early == SendOutcome::Sent(1) || early == lost || early == SendOutcome::Invalid);
        ip(&format!("address add {local} dev left0 {nodad}"));
        assert_eq!(socket.send_gso(&message), Ok(SendOutcome::Sent(1)));
    }
}

#[test]
fn a_full_send_buffer_would_block() {
    let _netns = Netns::enter_new();
    // Nobody answers for the neighbour, so packets wait for it and fill the buffer.
    ip("link add left0 type veth peer name right0");
    ip("address add 192.0.2.1/24 dev left0");
    ip("link set left0 up");
    ip("link set right0 up");
    let small = SocketOptions {
        buffer: 4096,
        ..options("192.0.2.1:0")
    };
    let socket = UdpSocket::bind_group(&small, ALL, &Steering::by_spi(1).unwrap())
        .unwrap()
        .remove(0);
    let message = Transmit {
        dst: "192.0.2.2:4500".parse().unwrap(),
        payload: &[0; 1400],
        segment_size: 0,
        tos: 0,
    };
    let outcomes: Vec<_> = (0..64)
        .map(|_| socket.send_gso(&message).unwrap())
        .collect();
    assert_eq!(outcomes[0], SendOutcome::Sent(1));
    assert_eq!(outcomes[63], SendOutcome::WouldBlock);
}

#[test]
fn a_port_that_another_shares_is_refused() {
    let _netns = Netns::enter_new();
    for local in ["127.0.0.1:4500", "[::1]:4500"] {
        let theirs =
            UdpSocket::bind_group(&options(local), NONE, &Steering::by_spi(2).unwrap()).unwrap();
        assert_eq!(address(&theirs[1]), local.parse().unwrap());
        let ours = UdpSocket::bind_group(&options(local), NONE, &Steering::by_spi(2).unwrap())
            .unwrap_err();
        assert_eq!(ours.errno(), Some(Errno::ADDRINUSE));
        assert_eq!(ours.step(), Some("bind"));
    }
}

#[test]
fn the_path_mtu_is_the_routes() {
    let _netns = Netns::enter_new();
    ip("link add left0 type veth peer name right0");
    ip("link set right0 up");
    ip("link set left0 up mtu 1400");
    ip("address add 192.0.2.1/24 dev left0");
    ip("address add 2001:db8::1/64 dev left0 nodad");
    ip("route add 198.51.100.0/24 dev left0 mtu 1300");
    ip("route add 2001:db8:1::/64 dev left0 mtu 1290");
    ip("route add 198.51.100.0/24 dev left0 mtu 1200 table 7");
    ip("rule add fwmark 9 lookup 7");
    for (dst, mark, mtu) in [
        ("192.0.2.9", 0, 1400),
        ("198.51.100.1", 0, 1300),
        ("198.51.100.1", 9, 1200),
        ("2001:db8::2", 0, 1400),
        ("2001:db8:1::2", 0, 1290),
    ] {
        assert_eq!(path_mtu(dst.parse().unwrap(), mark), Ok(mtu), "{dst}");
    }
    let unreachable = path_mtu("203.0.113.1".parse().unwrap(), 0).unwrap_err();
    assert_eq!(unreachable.errno(), Some(Errno::NETUNREACH));
}

#[test]
fn the_mark_chooses_the_route_of_what_is_sent() {
    let _netns = Netns::enter_new();
    ip("route add unreachable 127.0.0.9/32 table 7");
    ip("rule add pref 0 fwmark 9 lookup 7");
    ip("rule add pref 1 lookup local");
    ip("rule delete pref 0 lookup local");
    let message = Transmit {
        dst: "127.0.0.9:9".parse().unwrap(),
        payload: b"marked",
        segment_size: 0,
        tos: 0,
    };
    for (mark, outcome) in [
        (0, SendOutcome::Sent(1)),
        (9, SendOutcome::Lost(Errno::HOSTUNREACH)),
    ] {
        let marked = SocketOptions {
            mark,
            ..options("127.0.0.1:0")
        };
        let socket = UdpSocket::bind_group(&marked, ALL, &Steering::by_spi(1).unwrap())
            .unwrap()
            .remove(0);
        let own = socket.send_only().unwrap();
        for socket in [socket, own] {
            assert_eq!(socket.send_gso(&message), Ok(outcome));
        }
    }
}
