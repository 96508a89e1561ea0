//! The offloads of a TUN device, and the combinations to try if a kernel lacks some.

use bitflags::bitflags;

bitflags! {
    /// Offloads of packets read from the TUN (`TUNSETOFFLOAD`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TunFeatures: libc::c_uint {
        /// Checksums of TCP and UDP.
        const CSUM = libc::TUN_F_CSUM;
        /// Segmentation of TCP over IPv4.
        const TSO4 = libc::TUN_F_TSO4;
        /// Segmentation of TCP over IPv6.
        const TSO6 = libc::TUN_F_TSO6;
        /// The same for packets with CWR.
        const TSO_ECN = libc::TUN_F_TSO_ECN;
        /// Segmentation of UDP over IPv4 (Linux 6.2).
        const USO4 = libc::TUN_F_USO4;
        /// Segmentation of UDP over IPv6; the kernel takes both or none.
        const USO6 = libc::TUN_F_USO6;

        /// TCP over both.
        const TSO = Self::TSO4.bits() | Self::TSO6.bits() | Self::TSO_ECN.bits();
        /// UDP over both.
        const USO = Self::USO4.bits() | Self::USO6.bits();
    }
}

/// The combinations to try, the newest features leaving first.
pub(crate) fn downwards(wanted: TunFeatures) -> [TunFeatures; 5] {
    let without_uso = wanted - TunFeatures::USO;
    [
        wanted,
        without_uso,
        without_uso - TunFeatures::TSO_ECN,
        without_uso - TunFeatures::TSO,
        TunFeatures::empty(),
    ]
}

/// Removes features that the kernel refuses without another: all without CSUM, CWR without TCP, one
/// USO without the other.
pub(crate) fn sensible(wanted: TunFeatures) -> TunFeatures {
    let mut wanted = wanted;
    if !wanted.contains(TunFeatures::CSUM) {
        return TunFeatures::empty();
    }
    if !wanted.intersects(TunFeatures::TSO4 | TunFeatures::TSO6) {
        wanted -= TunFeatures::TSO_ECN;
    }
    if !wanted.contains(TunFeatures::USO) {
        wanted -= TunFeatures::USO;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_that_need_another_go_with_it() {
        let (csum, tso4) = (TunFeatures::CSUM, TunFeatures::TSO4);
        for (wanted, sensible_of_them) in [
            (TunFeatures::all(), TunFeatures::all()),
            (TunFeatures::TSO, TunFeatures::empty()),
            (csum | TunFeatures::TSO_ECN, csum),
            (csum | TunFeatures::USO6, csum),
            (csum | tso4 | TunFeatures::USO4, csum | tso4),
        ] {
            assert_eq!(sensible(wanted), sensible_of_them, "{wanted:?}");
        }
    }
    #[test]
    fn less_and_less_is_tried_of_what_was_wanted() {
        let (csum, tso4, tso6) = (TunFeatures::CSUM, TunFeatures::TSO4, TunFeatures::TSO6);
        let tcp = csum | tso4 | tso6;
        let all = TunFeatures::all();
        let none = TunFeatures::empty();
        let tries = [all, csum | TunFeatures::TSO, tcp, csum, none];
        assert_eq!(downwards(all), tries);
        let tries = [csum | tso4, csum | tso4, csum | tso4, csum, none];
        assert_eq!(downwards(csum | tso4), tries);
    }
}
