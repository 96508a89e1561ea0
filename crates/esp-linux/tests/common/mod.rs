//! Network namespaces for tests with real sockets and devices. Needs root.

#![allow(dead_code)] // each test file uses its part

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use esp_linux::bpf::Steering;
use esp_linux::poll::{Events, Interest, Poller};
use esp_linux::tun::{TunFeatures, TunQueue};
use esp_linux::tun_device::TunDevice;
use esp_linux::udp::{UdpFeatures, UdpSocket};
use esp_linux::{BatchSocket, RecvArena, RecvMeta, SocketOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Deadline of a test for an expected event.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace that lives as long as this or anything in it.
pub struct Netns(File);

impl Netns {
    /// Makes a namespace with the loopback interface up, and moves the calling thread into it.
    pub fn enter_new() -> Self {
        // A child makes it; the open file keeps it when the child is gone.
        let mut child = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) of util-linux");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"x").unwrap();
        let mut echo = [0];
        let stdout = child.stdout.as_mut().unwrap();
        stdout
            .read_exact(&mut echo)
            .expect("a network namespace: these tests need root");
        let file = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        drop(stdin);
        child.wait().unwrap();
        let netns = Self(file);
        netns.enter();
        ip("link set lo up");
        netns
    }

    /// Moves the calling thread into it.
    pub fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Name of the namespace for `ip link set ... netns`.
    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs ip(8) in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("ip(8) of iproute2");
    assert!(status.success(), "ip {arguments}");
}

/// Output of ip(8) in the calling thread's namespace.
pub fn ip_says(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip(8) of iproute2");
    String::from_utf8(output.stdout).unwrap()
}

/// The queues of a new TUN device, which is down.
pub fn tun_queues<const N: usize>(name: &str, wanted: TunFeatures) -> [TunQueue; N] {
    let mut device = TunDevice::create(name).unwrap();
    while device.queues() < N {
        device.add_queue().unwrap();
    }
    device.set_up(wanted).unwrap().try_into().unwrap()
}

pub fn options(local: &str) -> SocketOptions {
    SocketOptions {
        local: local.parse().unwrap(),
        mark: 0,
        buffer: 1 << 22,
    }
}

pub const ALL: UdpFeatures = UdpFeatures {
    gso: true,
    gro: true,
};
pub const NONE: UdpFeatures = UdpFeatures {
    gso: false,
    gro: false,
};

pub fn udp(local: &str, wanted: UdpFeatures) -> UdpSocket {
    let mut group =
        UdpSocket::bind_group(&options(local), wanted, &Steering::by_spi(1).unwrap()).unwrap();
    group.remove(0)
}

pub fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local().unwrap()
}

/// Waits until a file is readable; true if it is before the deadline.
pub fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let poller = Poller::new().unwrap();
    poller.add(fd, 0, Interest::READ).unwrap();
    let mut events = Events::new(1);
    poller.wait(&mut events, Some(patience)).unwrap();
    events.iter().count() == 1
}

/// Receives messages until there are `count`, each with its bytes, however they are batched.
pub fn receive(
    fd: impl AsFd,
    count: usize,
    mut recv: impl FnMut(&mut RecvArena, &mut [Vec<u8>]) -> Vec<RecvMeta>,
) -> Vec<(RecvMeta, Vec<u8>)> {
    let mut arena = RecvArena::new(32);
    let mut buffers = vec![vec![0; 65_535]; 32];
    let mut got = Vec::new();
    while got.len() < count {
        assert!(
            readable(fd.as_fd(), PATIENCE),
            "{} of {count} messages came",
            got.len()
        );
        let metas = recv(&mut arena, &mut buffers);
        for (meta, buffer) in metas.iter().zip(&buffers) {
            got.push((*meta, buffer[..meta.len].to_vec()));
        }
    }
    got
}

pub fn receive_udp(socket: &UdpSocket, count: usize) -> Vec<(RecvMeta, Vec<u8>)> {
    receive(socket, count, |arena, buffers| {
        let buffers = buffers.iter_mut().map(Vec::as_mut_slice);
        socket.recv_batch(arena, buffers).unwrap().to_vec()
    })
}

/// Polls a condition that no event reports.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that differ from place to place, so that any that are moved show.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}
