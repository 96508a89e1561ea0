//! The limit of open files, which is the whole process's: a program of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod common;

use common::{ALL, Netns, options, udp};
use esp_linux::Errno;
use esp_linux::bpf::Steering;
use esp_linux::raw::RawSocket;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn the_last_open_files_are_left_to_others() {
    let _netns = Netns::enter_new();
    let udp = udp("127.0.0.1:0", ALL);
    let raw = RawSocket::bind_group(&options("127.0.0.1:0"), &Steering::by_spi(1).unwrap())
        .unwrap()
        .remove(0);
    let before = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(128),
        ..before
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let refused = [udp.send_only().map(drop), raw.send_only().map(drop)];
    setrlimit(Resource::Nofile, before).unwrap();
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(error.errno(), Some(Errno::MFILE));
    }
    assert!(udp.send_only().is_ok() && raw.send_only().is_ok());
}
