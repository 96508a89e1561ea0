//! Steering by SPI with classic BPF, so that one worker receives all packets of an SA.
//!
//! Outer packets of one tunnel all have the same addresses and ports, so the kernel's own hash
//! would give them all to one socket.

use std::os::fd::AsFd;

use libc::sock_filter;

use crate::error::{Error, Result, Step};
use crate::sockopt;

const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_WORD_AFTER_X: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
const LOAD_LEN: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_LEN;
const LOAD_IP_HEADER_LEN_TO_X: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const LOAD_TO_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
const SUBTRACT_X: u32 = libc::BPF_ALU | libc::BPF_SUB | libc::BPF_X;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

/// Gives each packet of a `SO_REUSEPORT` group to the socket whose index (in the order in which
/// they were bound) is SPI modulo `count`.
///
/// The program sees the UDP payload. Payloads of less than 4 bytes (NAT keepalives) and those that
/// begin with the Non-ESP Marker (RFC 3948 2.2) go to the first socket. A super-packet goes where
/// its first ESP packet does, whatever SPIs the others have.
///
/// If the socket isn't bound yet and has `SO_REUSEPORT`, the program is in place before the group
/// has a second member (`reuseport_attach_prog`).
///
/// # Errors
/// The error of the system call; `Argument` if `count` is 0.
pub fn steer_by_spi(fd: impl AsFd, count: u32) -> Result<()> {
    let program = [
        instruction(LOAD_WORD, 0),
        instruction(MODULO, not_zero(count)?),
        instruction(RETURN_A, 0),
    ];
    sockopt::attach(fd.as_fd(), libc::SO_ATTACH_REUSEPORT_CBPF, &program)
        .step("SO_ATTACH_REUSEPORT_CBPF")
}

/// Discards everything that a socket would receive, before it is queued.
///
/// # Errors
/// The error of the system call.
pub fn accept_nothing(fd: impl AsFd) -> Result<()> {
    let program = [instruction(RETURN, 0)];
    sockopt::attach(fd.as_fd(), libc::SO_ATTACH_FILTER, &program).step("SO_ATTACH_FILTER")
}

/// Filters a raw IPv4 or IPv6 socket to packets whose SPI modulo `count` is `index`.
///
/// Raw sockets form no group: the kernel gives every one of them a clone of every packet. The
/// filter discards the clone before it is queued. IPv4 packets are seen from the IP header on, IPv6
/// packets from the ESP header on. A payload of less than 4 bytes, which has no SPI, passes the
/// filter of index 0: a load beyond its end would discard every clone, and nobody would count it.
///
/// # Errors
/// The error of the system call; `Argument` if `index` isn't less than `count`.
pub fn accept_spi(fd: impl AsFd, ipv4: bool, index: u32, count: u32) -> Result<()> {
    if index >= count {
        return Err(Error::Argument(
            "the index of a steered socket must be less than their count",
        ));
    }
    let header_len_to_x = if ipv4 {
        instruction(LOAD_IP_HEADER_LEN_TO_X, 0)
    } else {
        instruction(LOAD_TO_X, 0)
    };
    let without_spi = if index == 0 { u32::MAX } else { 0 };
    let program = [
        header_len_to_x,
        instruction(LOAD_LEN, 0),
        instruction(SUBTRACT_X, 0),
        jump(JUMP_IF_AT_LEAST, 4, 1, 0),
        instruction(RETURN, without_spi),
        instruction(LOAD_WORD_AFTER_X, 0),
        instruction(MODULO, not_zero(count)?),
        jump(JUMP_IF_EQUAL, index, 0, 1),
        instruction(RETURN, u32::MAX),
        instruction(RETURN, 0),
    ];
    sockopt::attach(fd.as_fd(), libc::SO_ATTACH_FILTER, &program).step("SO_ATTACH_FILTER")
}

fn not_zero(count: u32) -> Result<u32> {
    if count == 0 {
        return Err(Error::Argument("there must be a socket to steer to"));
    }
    Ok(count)
}

fn instruction(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

#[allow(clippy::cast_possible_truncation)] // BPF codes are 16 bits wide, libc's constants 32
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}
