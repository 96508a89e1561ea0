//! TUN queues: super-packets of the kernel's own TCP and UDP, carried from one TUN to another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;

use common::{
    ALL, NONE, Netns, PATIENCE, address, eventually, ip, ip_says, pattern, readable, receive_udp,
    tun_queues, udp,
};
use esp_core::wire::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr};
use esp_linux::poll::{Events, Interest, Poller, Waker};
use esp_linux::tun::{MAX_PACKET, TunFeatures, TunQueue, TunRead, TunWrite};
use esp_linux::tun_device::TunDevice;
use esp_linux::{BatchSocket, Errno, Error, SendArena, SendOutcome, Transmit};

const MTU: usize = 1400;

/// A namespace with a TUN device of two addresses, the other end of which is `host ^ 3`.
fn tun(host: u8, offloads: TunFeatures) -> (Netns, TunQueue) {
    let netns = Netns::enter_new();
    let [queue] = tun_queues("tun0", offloads);
    up(host);
    (netns, queue)
}

/// The same with two queues.
fn two_queues() -> (Netns, TunQueue, TunQueue) {
    let netns = Netns::enter_new();
    let [first, second] = tun_queues("tun0", TunFeatures::all());
    up(1);
    (netns, first, second)
}

fn up(host: u8) {
    ip(&format!("address add 192.0.2.{host}/24 dev tun0"));
    ip(&format!("address add 2001:db8::{host}/64 dev tun0 nodad"));
    ip(&format!("link set tun0 up mtu {MTU}"));
    // The kernel adds an IPv6 address's local route at its leisure.
    eventually("the local route appears", || {
        let local = ip_says("-6 route show table local type local");
        local.contains(&format!("2001:db8::{host} "))
    });
}

/// Reads what the test made the kernel send, not what it says of its own accord (MLD, RS).
fn read(queue: &TunQueue, buffer: &mut [u8]) -> (VnetHdr, usize) {
    loop {
        assert!(readable(queue, PATIENCE), "no packet came");
        let TunRead::Packet(header, len) = queue.read(buffer).unwrap() else {
            panic!("readable and nothing to read")
        };
        if !is_chatter(&buffer[..len]) {
            return (header, len);
        }
    }
}

fn is_chatter(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 && matches!(packet[6], 0 | 58)
}

/// Carries packets between two queues, header and all, until woken; gives what they were.
fn carry(queues: [&TunQueue; 2], stop: &Waker) -> Vec<(VnetHdr, usize)> {
    let poller = Poller::new().unwrap();
    for (token, queue) in (0..).zip(queues) {
        poller.add(queue, token, Interest::READ).unwrap();
    }
    poller.add(stop, 2, Interest::READ).unwrap();
    let (mut events, mut buffer) = (Events::new(3), vec![0; MAX_PACKET]);
    let mut carried = Vec::new();
    loop {
        poller.wait(&mut events, Some(PATIENCE)).unwrap();
        for event in events.iter() {
            let from = event.token as usize;
            if from == 2 {
                return carried;
            }
            while let TunRead::Packet(header, len) = queues[from].read(&mut buffer).unwrap() {
                let written = queues[1 - from].write(&header, &buffer[..len]);
                assert_eq!(written, Ok(TunWrite::Written));
                if !is_chatter(&buffer[..len]) {
                    carried.push((header, len));
                }
            }
        }
    }
}

#[test]
fn tcp_super_packets_pass_from_tun_to_tun() {
    let (left, left_tun) = tun(1, TunFeatures::all());
    let (right, right_tun) = tun(2, TunFeatures::all());
    for (host, gso_type) in [("192.0.2.2", GSO_TCPV4), ("2001:db8::2", GSO_TCPV6)] {
        let data = pattern(2 << 20);
        right.enter();
        let listener = TcpListener::bind((host, 0)).unwrap();
        left.enter();
        let stop = Waker::new().unwrap();
        let carried = std::thread::scope(|scope| {
            let carrier = scope.spawn(|| carry([&left_tun, &right_tun], &stop));
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                stream.write_all(&got).unwrap();
            });
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            assert_eq!(back.len(), data.len());
            assert!(back == data, "other bytes came back");
            stop.wake().unwrap();
            carrier.join().unwrap()
        });
        let supers: Vec<_> = carried
            .iter()
            .filter(|(header, _)| header.gso_type & !GSO_ECN == gso_type)
            .collect();
        assert!(!supers.is_empty());
        for (header, len) in &supers {
            assert!(header.flags & NEEDS_CSUM != 0);
            assert_eq!(header.csum_offset, 16);
            let headers = usize::from(header.hdr_len);
            assert!(headers + usize::from(header.gso_size) <= MTU);
            assert!(*len > headers + usize::from(header.gso_size));
        }
        let longest = supers.iter().map(|(_, len)| *len).max();
        assert!(longest > Some(16_000), "{longest:?}");
        // 4 MiB in packets of the MTU would be 3000 and their acknowledgements.
        assert!(carried.len() < 2000, "{} packets", carried.len());
    }
}

#[test]
fn udp_super_packets_pass_from_tun_to_tun() {
    let (left, left_tun) = tun(1, TunFeatures::all());
    let (right, right_tun) = tun(2, TunFeatures::all());
    assert!(left_tun.features().contains(TunFeatures::USO));
    for (from, to) in [
        ("192.0.2.1:0", "192.0.2.2:0"),
        ("[2001:db8::1]:0", "[2001:db8::2]:0"),
    ] {
        right.enter();
        let receiver = udp(to, ALL);
        left.enter();
        let sender = udp(from, ALL);
        let payload = pattern(30 * 1200 + 77);
        let message = Transmit {
            dst: address(&receiver),
            payload: &payload,
            segment_size: 1200,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        let mut buffer = vec![0; MAX_PACKET];
        let (header, len) = read(&left_tun, &mut buffer);
        assert_eq!((header.gso_type, header.gso_size), (GSO_UDP_L4, 1200));
        assert_eq!(header.csum_offset, 6);
        assert!(len > payload.len());
        // In pieces, as merged packets are written: the kernel takes it for the same.
        let bytes = header.to_bytes();
        let pieces = buffer[..len].chunks(1000).map(IoSlice::new);
        let parts: Vec<_> = [IoSlice::new(&bytes)].into_iter().chain(pieces).collect();
        assert_eq!(right_tun.write_parts(&parts), Ok(TunWrite::Written));
        let got = receive_udp(&receiver, 1);
        assert_eq!(got[0].1, payload);
        assert_eq!(got[0].0.segment_size, 1200);
    }
}

#[test]
fn without_offloads_packets_come_whole_and_no_larger_than_the_mtu() {
    let (_netns, queue) = tun(1, TunFeatures::empty());
    assert_eq!(queue.features(), TunFeatures::empty());
    let sender = udp("192.0.2.1:0", ALL);
    let payload = pattern(3 * 1000);
    let message = Transmit {
        dst: "192.0.2.2:9".parse().unwrap(),
        payload: &payload,
        segment_size: 1000,
        tos: 0,
    };
    // The card has no checksum offload: older kernels say so, newer ones do without.
    let outcome = sender.send_gso(&message).unwrap();
    if outcome == SendOutcome::NoOffload {
        let messages = payload.chunks(1000).map(|payload| Transmit {
            payload,
            segment_size: 0,
            ..message
        });
        let outcome = sender.send_batch(&mut SendArena::new(3), messages);
        assert_eq!(outcome, Ok(SendOutcome::Sent(3)));
    } else {
        assert_eq!(outcome, SendOutcome::Sent(1));
    }
    let mut buffer = vec![0; MAX_PACKET];
    for sent in payload.chunks(1000) {
        let (header, len) = read(&queue, &mut buffer);
        assert_eq!(header, VnetHdr::default());
        assert_eq!((header.gso_type, len), (GSO_NONE, 1028));
        assert_eq!(&buffer[28..len], sent);
        assert_eq!(checksum_of_udp(&buffer[..len]), 0xffff);
    }
}

/// RFC 768 over an IPv4 packet, its own checksum included: 0xffff where that is right.
fn checksum_of_udp(packet: &[u8]) -> u16 {
    let pseudo = [0, 17, 0, 0].iter().chain(&packet[12..20]);
    let mut bytes: Vec<u8> = pseudo.chain(&packet[20..]).copied().collect();
    let len = (packet.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    let words = bytes.chunks_exact(2);
    let sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    (sum + (sum >> 16)) as u16
}

#[test]
fn only_the_wanted_offloads_are_on() {
    let _netns = Netns::enter_new();
    for (name, wanted, on) in [
        ("a", TunFeatures::all(), TunFeatures::all()),
        ("b", TunFeatures::CSUM, TunFeatures::CSUM),
        (
            "c",
            TunFeatures::CSUM | TunFeatures::TSO,
            TunFeatures::CSUM | TunFeatures::TSO,
        ),
        ("d", TunFeatures::TSO, TunFeatures::empty()),
    ] {
        let [queue] = tun_queues(name, wanted);
        assert_eq!((queue.name(), queue.features()), (name, on));
    }
}

/// A datagram from 192.0.2.2 to 192.0.2.1, port 7, made by hand: the kernel checks the IPv4
/// header's sum, and takes a UDP checksum of zero.
fn ping_to_port_7() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend([192, 0, 2, 2, 192, 0, 2, 1]);
    packet.extend([0, 9, 0, 7, 0, 12, 0, 0]);
    packet.extend(b"ping");
    let words = packet[..20].chunks_exact(2);
    let sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    let sum = !((sum + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_packet_for_an_interface_that_is_down_is_lost_and_later_ones_pass() {
    let (_netns, queue) = tun(1, TunFeatures::all());
    let receiver = udp("192.0.2.1:7", NONE);
    let packet = ping_to_port_7();
    let header = VnetHdr::default();
    ip("link set tun0 down");
    assert_eq!(queue.write(&header, &packet), Ok(TunWrite::Down));
    // Queued packets can still be read; behind them there is nothing, and no error.
    while let TunRead::Packet(..) = queue.read(&mut [0; 2000]).unwrap() {}
    assert_eq!(queue.read(&mut [0; 2000]), Ok(TunRead::WouldBlock));
    ip("link set tun0 up");
    assert_eq!(queue.write(&header, &packet), Ok(TunWrite::Written));
    assert_eq!(receive_udp(&receiver, 1)[0].1, b"ping");
}

#[test]
fn a_queue_of_a_deleted_device_is_gone() {
    let (_netns, queue) = tun(1, TunFeatures::all());
    ip("link delete tun0");
    assert_eq!(queue.read(&mut [0; 2000]), Ok(TunRead::Gone));
    assert_eq!(
        queue.write(&VnetHdr::default(), &[0x45; 40]),
        Ok(TunWrite::Gone)
    );
    // A worker that sleeps learns of it.
    assert!(readable(&queue, PATIENCE));
}

#[test]
fn a_detached_queue_gets_no_packets_until_it_is_attached() {
    let (_netns, first, second) = two_queues();
    let packets_of_32_flows = |queue: &TunQueue| {
        for sender in (0..32).map(|_| udp("192.0.2.1:0", NONE)) {
            let message = Transmit {
                dst: "192.0.2.2:9".parse().unwrap(),
                payload: b"flow",
                segment_size: 0,
                tos: 0,
            };
            assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        }
        let mut buffer = vec![0; MAX_PACKET];
        let mut count = 0;
        while let TunRead::Packet(_, len) = queue.read(&mut buffer).unwrap() {
            count += usize::from(!is_chatter(&buffer[..len]));
        }
        count
    };
    second.detach().unwrap();
    assert_eq!(packets_of_32_flows(&first), 32);
    assert_eq!(second.read(&mut [0; 2000]), Ok(TunRead::WouldBlock));
    let written = second.write(&VnetHdr::default(), &[0x45; 40]);
    assert_eq!(written, Ok(TunWrite::Written));
    let again = second.detach().unwrap_err();
    assert_eq!(again.errno(), Some(Errno::INVAL));
    second.attach().unwrap();
    assert!(packets_of_32_flows(&first) < 32);
    assert!(packets_of_32_flows(&second) > 0);
}

#[test]
fn what_is_no_ip_packet_or_belies_its_header_is_rejected() {
    let (_netns, queue) = tun(1, TunFeatures::all());
    let write = |header: VnetHdr, packet: &[u8]| queue.write(&header, packet).unwrap();
    let plain = VnetHdr::default();
    for packet in [&[][..], &[0x00; 40], &[0xff; 40], &[0x15]] {
        assert_eq!(write(plain, packet), TunWrite::Invalid, "{packet:?}");
    }
    let impossible = [
        VnetHdr {
            gso_type: GSO_TCPV4,
            ..plain
        },
        VnetHdr {
            gso_type: 0x7e,
            gso_size: 10,
            ..plain
        },
        VnetHdr {
            hdr_len: 100,
            ..plain
        },
        VnetHdr {
            flags: NEEDS_CSUM,
            csum_start: 39,
            csum_offset: 16,
            ..plain
        },
    ];
    for header in impossible {
        assert_eq!(write(header, &[0x45; 40]), TunWrite::Invalid, "{header:?}");
    }
    // None of them hurt the queue.
    let len = queue.read(&mut [0; 2000]);
    assert!(matches!(len, Ok(TunRead::WouldBlock | TunRead::Packet(..))));
}

#[test]
fn flows_spread_over_the_queues_and_each_stays_in_its_own() {
    let (_netns, first, second) = two_queues();
    let mut queues_of: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
    let senders: Vec<_> = (0..32).map(|_| udp("192.0.2.1:0", NONE)).collect();
    for round in 0..3 {
        for sender in &senders {
            let message = Transmit {
                dst: "192.0.2.2:9".parse().unwrap(),
                payload: &[round; 4],
                segment_size: 0,
                tos: 0,
            };
            assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
        }
    }
    let mut buffer = vec![0; MAX_PACKET];
    for (index, queue) in [&first, &second].into_iter().enumerate() {
        while let TunRead::Packet(_, len) = queue.read(&mut buffer).unwrap() {
            if !is_chatter(&buffer[..len]) {
                let port = u16::from_be_bytes([buffer[20], buffer[21]]);
                queues_of.entry(port).or_default().insert(index);
            }
        }
    }
    let ports: BTreeSet<_> = senders.iter().map(|s| address(s).port()).collect();
    assert!(queues_of.keys().eq(&ports), "a flow was lost");
    assert!(queues_of.values().all(|queues| queues.len() == 1));
    let used: BTreeSet<_> = queues_of.values().flatten().collect();
    assert_eq!(used.len(), 2);
}

#[test]
fn the_device_goes_with_its_last_queue() {
    let (_netns, first, second) = two_queues();
    drop(first);
    assert!(ip_says("link show").contains("tun0"));
    drop(second);
    // A process that another test is starting may have its copies of our files for a moment.
    eventually("the device goes", || !ip_says("link show").contains("tun0"));
}

#[test]
fn a_name_that_is_taken_and_a_bad_name_are_refused() {
    let _netns = Netns::enter_new();
    ip("tuntap add single mode tun");
    ip("tuntap add many mode tun multi_queue");
    ip("link add other type veth");
    let _ours = TunDevice::create("ours").unwrap();
    let before = ip_says("-d link show");
    for name in ["single", "many", "other", "ours"] {
        let refused = TunDevice::create(name).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::BUSY), "{name}");
        assert_eq!(refused.step(), Some("TUNSETIFF"));
    }
    assert_eq!(ip_says("-d link show"), before);
    for name in ["", "sixteen-letters-"] {
        let refused = TunDevice::create(name);
        assert!(matches!(refused, Err(Error::Argument(_))));
    }
    TunDevice::create("fifteen-letters").unwrap();
    let slash = TunDevice::create("a/b").unwrap_err();
    assert_eq!(slash.errno(), Some(Errno::INVAL));
}

#[test]
fn a_new_device_is_down_and_belongs_to_user_0() {
    let _netns = Netns::enter_new();
    let mut device = TunDevice::create("tun0").unwrap();
    let made = ip_says("-d link show tun0");
    assert!(made.contains("numqueues 1 numdisabled 0"), "{made}");
    assert!(made.contains("user root"), "{made}");
    assert!(made.contains("state DOWN"), "{made}");
    device.add_queue().unwrap();
    let [first, second]: [TunQueue; 2] = device
        .set_up(TunFeatures::all())
        .unwrap()
        .try_into()
        .unwrap();
    second.detach().unwrap();
    let detached = ip_says("-d link show tun0");
    assert!(detached.contains("numqueues 1 numdisabled 1"), "{detached}");
    drop(first);
    drop(second);
}

/// Has a queue for a moment, and changes all that a queue's holder can: sizes, order of bytes, kind
/// of link, carrier, offloads, and a program that cuts each packet to 1 byte and chooses queue 1.
const MEDDLER: &str = r#"
import ctypes, fcntl, os, platform, struct
queue = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(queue, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x5101))
code = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
load = struct.pack("=IIQQ", 1, 2, ctypes.addressof(text), ctypes.addressof(licence))
load = ctypes.create_string_buffer(load.ljust(128, bytes(1)))
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
program = ctypes.CDLL(None, use_errno=True).syscall(number, 5, load, 128)
assert program >= 0, os.strerror(ctypes.get_errno())
for option, value in (
    (0x400454D4, 1), (0x400454D8, 20), (0x800454E0, program), (0x800454E1, program),
    (0x400454E2, 0), (0x400454DC, 1),
):
    fcntl.ioctl(queue, option, struct.pack("i", value))
fcntl.ioctl(queue, 0x400454CD, 1)
fcntl.ioctl(queue, 0x400454D0, 0)
"#;

#[test]
fn what_another_holder_of_a_queue_changed_is_put_back() {
    let _netns = Netns::enter_new();
    let mut device = TunDevice::create("tun0").unwrap();
    let untouched = ip_says("-d link show tun0");
    let meddled = Command::new("python3").args(["-c", MEDDLER]).status();
    assert!(meddled.unwrap().success());
    assert_ne!(ip_says("-d link show tun0"), untouched);
    device.add_queue().unwrap();
    let queues = device.set_up(TunFeatures::all()).unwrap();
    let after = ip_says("-d link show tun0");
    assert_eq!(after.replace("numqueues 2", "numqueues 1"), untouched);
    up(1);
    let senders: Vec<_> = (0..32).map(|_| udp("192.0.2.1:0", NONE)).collect();
    for sender in &senders {
        let message = Transmit {
            dst: "192.0.2.2:9".parse().unwrap(),
            payload: b"flow",
            segment_size: 0,
            tos: 0,
        };
        assert_eq!(sender.send_gso(&message), Ok(SendOutcome::Sent(1)));
    }
    let mut buffer = vec![0; MAX_PACKET];
    let counts = [0, 1].map(|index: usize| {
        let mut count = 0;
        while let TunRead::Packet(_, len) = queues[index].read(&mut buffer).unwrap() {
            count += usize::from(buffer[..len].ends_with(b"flow"));
        }
        count
    });
    assert_eq!(counts.iter().sum::<usize>(), 32);
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    let receiver = udp("192.0.2.1:7", NONE);
    let written = queues[0].write(&VnetHdr::default(), &ping_to_port_7());
    assert_eq!(written, Ok(TunWrite::Written));
    assert_eq!(receive_udp(&receiver, 1)[0].1, b"ping");
}
