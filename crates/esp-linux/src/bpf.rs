//! Steering by SPI with classic BPF, so that one worker receives all packets of an SA.
//!
//! Outer packets of one tunnel all have the same addresses and ports, so the kernel's own hash
//! would give them all to one socket.

use std::collections::BTreeSet;
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
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

/// SPIs of a leaf of the search tree: compared one after the other.
const LEAF: usize = 16;

/// Steering of a group's packets: the index of the socket that gets those of an SPI.
///
/// It is that of the SPI's place in a list, and SPI modulo the number of sockets for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    count: u32,
    /// SPI and index, in the order of the SPIs.
    listed: Vec<(u32, u32)>,
}

impl Steering {
    /// Most SPIs in the list: their program fits into the option memory of a socket where it is 20
    /// KiB (`net.core.optmem_max` before Linux 6.7).
    pub const MAX_LISTED: usize = 400;

    /// Steers every packet to the socket whose index is SPI modulo `count`.
    ///
    /// # Errors
    /// `Argument` if `count` is 0.
    pub const fn by_spi(count: u32) -> Result<Self> {
        if count == 0 {
            return Err(Error::Argument("there must be a socket to steer to"));
        }
        Ok(Self {
            count,
            listed: Vec::new(),
        })
    }

    /// Steers the packets of these SPIs, each with the index of its socket, and the others by SPI
    /// modulo `count`.
    ///
    /// # Errors
    /// `Argument` if `count` is 0, an index isn't less, an SPI is there twice, or there are more
    /// than [`Self::MAX_LISTED`].
    pub fn by_list(count: u32, mut listed: Vec<(u32, u32)>) -> Result<Self> {
        let by_spi = Self::by_spi(count)?;
        if listed.len() > Self::MAX_LISTED {
            return Err(Error::Argument("too many SPIs are listed"));
        }
        listed.sort_unstable();
        if listed.iter().any(|&(_, index)| index >= count) {
            return Err(Error::Argument(
                "the index of a steered socket must be less than their count",
            ));
        }
        if listed.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(Error::Argument("an SPI is listed twice"));
        }
        Ok(Self { listed, ..by_spi })
    }

    /// Number of sockets.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The SPIs that are listed.
    pub fn listed(&self) -> impl Iterator<Item = u32> {
        self.listed.iter().map(|&(spi, _)| spi)
    }

    /// The index of the socket that gets the packets of an SPI.
    #[must_use]
    pub fn index_of(&self, spi: u32) -> u32 {
        let found = self.listed.binary_search_by_key(&spi, |&(spi, _)| spi);
        found.map_or(spi % self.count, |at| self.listed[at].1)
    }
}

/// Gives each packet of a `SO_REUSEPORT` group to the socket that `steering` names by its index, in
/// the order in which they were bound.
///
/// The program sees the UDP payload. Payloads of less than 4 bytes (NAT keepalives) and those that
/// begin with the Non-ESP Marker (RFC 3948 2.2) go to the first socket. A super-packet goes where
/// its first ESP packet does, whatever SPIs the others have.
///
/// If the socket isn't bound yet and has `SO_REUSEPORT`, the program is in place before the group
/// has a second member (`reuseport_attach_prog`). A later program takes the earlier one's place in
/// one step, for the whole group.
///
/// # Errors
/// The error of the system call.
pub fn steer(fd: impl AsFd, steering: &Steering) -> Result<()> {
    let otherwise = [
        instruction(MODULO, steering.count),
        instruction(RETURN_A, 0),
    ];
    let mut program = vec![instruction(LOAD_WORD, 0)];
    program.extend(search(&steering.listed, &otherwise));
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

/// Filters a raw IPv4 or IPv6 socket to the packets that any of `steerings`, of which there is one
/// at least, gives to the socket of this index.
///
/// Raw sockets form no group: the kernel gives every one of them a clone of every packet. The
/// filter discards the clone before it is queued. IPv4 packets are seen from the IP header on, IPv6
/// packets from the ESP header on. A payload of less than 4 bytes, which has no SPI, passes the
/// filter of index 0: a load beyond its end would discard every clone, and nobody would count it.
///
/// # Errors
/// The error of the system call; `Argument` without a steering, or if the index isn't less than the
/// number of sockets.
pub fn accept(fd: impl AsFd, ipv4: bool, index: u32, steerings: &[&Steering]) -> Result<()> {
    let count = steerings.first().map_or(0, |steering| steering.count);
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
    let pass = |passes| if passes { u32::MAX } else { 0 };
    let listed: BTreeSet<u32> = steerings.iter().flat_map(|each| each.listed()).collect();
    let listed: Vec<(u32, u32)> = listed
        .into_iter()
        .map(|spi| {
            let here = steerings.iter().any(|each| each.index_of(spi) == index);
            (spi, pass(here))
        })
        .collect();
    let otherwise = [
        instruction(MODULO, count),
        jump(JUMP_IF_EQUAL, index, 0, 1),
        instruction(RETURN, u32::MAX),
        instruction(RETURN, 0),
    ];
    let mut program = vec![
        header_len_to_x,
        instruction(LOAD_LEN, 0),
        instruction(SUBTRACT_X, 0),
        jump(JUMP_IF_AT_LEAST, 4, 1, 0),
        instruction(RETURN, pass(index == 0)),
        instruction(LOAD_WORD_AFTER_X, 0),
    ];
    program.extend(search(&listed, &otherwise));
    sockopt::attach(fd.as_fd(), libc::SO_ATTACH_FILTER, &program).step("SO_ATTACH_FILTER")
}

/// Returns the number beside the SPI that A holds, by a binary search; else goes on with
/// `otherwise`, which returns.
fn search(listed: &[(u32, u32)], otherwise: &[sock_filter]) -> Vec<sock_filter> {
    if listed.len() <= LEAF {
        let compare = |&(spi, found): &(u32, u32)| {
            [jump(JUMP_IF_EQUAL, spi, 0, 1), instruction(RETURN, found)]
        };
        let mut leaf: Vec<sock_filter> = listed.iter().flat_map(compare).collect();
        leaf.extend_from_slice(otherwise);
        return leaf;
    }
    let (low, high) = listed.split_at(listed.len() / 2);
    let first_high = high.first().map_or(0, |&(spi, _)| spi);
    let (low, high) = (search(low, otherwise), search(high, otherwise));
    // A conditional jump passes over 255 instructions at most.
    let over_low = u32::try_from(low.len()).unwrap_or(u32::MAX);
    let mut tree = vec![
        jump(JUMP_IF_AT_LEAST, first_high, 0, 1),
        instruction(JUMP, over_low),
    ];
    tree.extend(low);
    tree.extend(high);
    tree
}

fn instruction(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

#[allow(clippy::cast_possible_truncation)] // BPF codes are 16 bits wide, libc's constants 32
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}
