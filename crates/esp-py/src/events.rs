//! One class for each event.

use std::net::IpAddr;

use esp_dataplane::events;
use pyo3::prelude::*;

/// Defines the class of an event: its fields can be read, and matched by their places.
macro_rules! event_classes {
    ($($(#[doc = $doc:literal])+ $name:ident($($field:ident: $kind:ty),+);)+) => {
        $(
            $(#[doc = $doc])+
            #[pyclass(module = "esp_gw_core", frozen, get_all, eq)]
            #[derive(PartialEq, Eq)]
            pub(crate) struct $name {
                $($field: $kind,)+
            }

            #[pymethods]
            impl $name {
                #[new]
                fn new($($field: $kind),+) -> Self {
                    Self { $($field),+ }
                }

                #[classattr]
                #[pyo3(name = "__match_args__")]
                fn match_args(py: Python<'_>) -> PyResult<Bound<'_, pyo3::types::PyTuple>> {
                    pyo3::types::PyTuple::new(py, [$(stringify!($field)),+])
                }
            }
        )+

        /// Adds the classes of all events to the module.
        pub(crate) fn add_classes(module: &Bound<'_, PyModule>) -> PyResult<()> {
            $(module.add_class::<$name>()?;)+
            Ok(())
        }
    };
}

event_classes! {
    /// Half of an outbound SA's lease is used.
    LeaseLow(sa: String);
    /// An eighth of an SA's sequence numbers is left.
    SoftExpired(sa: String);
    /// An SA has no sequence number left.
    HardExpired(sa: String);
    /// The newest authenticated packet of an inbound SA came from elsewhere.
    PeerAddressChanged(sa: String, address: IpAddr, port: u16);
    /// An inbound SA has received a number above the one that is watched.
    CeilingNear(sa: String, highest: u64);
    /// The kernel has learned a path MTU.
    PathMtuChanged(remote: IpAddr, mtu: u32);
    /// The kernel refuses GSO sends to an address.
    GsoRefused(remote: IpAddr, error: String);
    /// The TUN refuses super-packets of a kind.
    MergeRefused(kind: String);
    /// `AF_ALG` has failed and is not used any more.
    AfAlgLost(reason: String);
    /// A worker can't go on.
    EngineFailed(reason: String);
}

/// An event as Python gets it: an object of its class.
#[derive(IntoPyObject)]
pub(crate) enum Event {
    LeaseLow(LeaseLow),
    SoftExpired(SoftExpired),
    HardExpired(HardExpired),
    PeerAddressChanged(PeerAddressChanged),
    CeilingNear(CeilingNear),
    PathMtuChanged(PathMtuChanged),
    GsoRefused(GsoRefused),
    MergeRefused(MergeRefused),
    AfAlgLost(AfAlgLost),
    EngineFailed(EngineFailed),
}

impl From<events::Event> for Event {
    fn from(event: events::Event) -> Self {
        use events::Event as Native;
        match event {
            Native::LeaseLow(sa) => Self::LeaseLow(LeaseLow { sa: sa.to_string() }),
            Native::SoftExpired(sa) => Self::SoftExpired(SoftExpired { sa: sa.to_string() }),
            Native::HardExpired(sa) => Self::HardExpired(HardExpired { sa: sa.to_string() }),
            Native::PeerAddressChanged(sa, peer) => Self::PeerAddressChanged(PeerAddressChanged {
                sa: sa.to_string(),
                address: peer.ip(),
                port: peer.port(),
            }),
            Native::CeilingNear(sa, highest) => Self::CeilingNear(CeilingNear {
                sa: sa.to_string(),
                highest,
            }),
            Native::PathMtuChanged(remote, mtu) => {
                Self::PathMtuChanged(PathMtuChanged { remote, mtu })
            }
            Native::GsoRefused(remote, errno) => Self::GsoRefused(GsoRefused {
                remote,
                error: errno.to_string(),
            }),
            Native::MergeRefused(kind) => Self::MergeRefused(MergeRefused {
                kind: kind.to_string(),
            }),
            Native::AfAlgLost(why) => Self::AfAlgLost(AfAlgLost {
                reason: why.to_string(),
            }),
            Native::EngineFailed(reason) => Self::EngineFailed(EngineFailed { reason }),
        }
    }
}
