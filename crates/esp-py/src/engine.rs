//! The engine, as the control plane commands it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use esp_dataplane::engine::{Engine, SadChange};
use esp_linux::Errno;
use pyo3::prelude::*;

use crate::counters::{Counters, Direction, LatencyStatus, OffloadStatus, SaCounters};
#[cfg(feature = "null-cipher")]
use crate::errors::value_error;
use crate::errors::{os_error, sa_refused};
use crate::events::Event;
use crate::lanes::LaneStatus;
use crate::policy::Policy;
use crate::sa::{InboundSa, Lease, OutboundSa, ReplacedSa};
use crate::samples::{Opening, Refused};
use crate::settings::{OuterSocket, Settings};
use crate::stages::StageTimes;

/// The data plane: worker threads between a TUN device and ESP.
#[pyclass(module = "esp_gw_core")]
pub(crate) struct NativeEngine(Engine);

#[pymethods]
impl NativeEngine {
    #[new]
    fn new(py: Python<'_>, settings: &Settings) -> PyResult<Self> {
        #[cfg(feature = "null-cipher")]
        if std::env::var_os("ESP_GW_NULL_CIPHER").is_none() {
            return Err(value_error(
                "it was built for benchmarks and protects nothing; \
                 'pip install --force-reinstall ./crates/esp-py' brings the ordinary one",
            ));
        }
        let settings = settings.0.clone();
        py.detach(|| Engine::open(settings))
            .map(Self)
            .map_err(|error| os_error(&error))
    }

    fn start(&mut self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.start())
            .map_err(|error| os_error(&error))
    }

    fn queues(&self) -> usize {
        self.0.queues()
    }

    fn workers(&self) -> usize {
        self.0.workers()
    }

    fn offloads(&self) -> HashMap<&'static str, OffloadStatus> {
        let offloads = self.0.offloads().into_iter();
        offloads
            .map(|offload| (offload.name, offload.into()))
            .collect()
    }

    fn latency(&self) -> LatencyStatus {
        let requests = self.0.latency();
        LatencyStatus {
            held: requests.held(),
            refused: requests.refused().map(Errno::raw_os_error),
        }
    }

    fn providers(&self) -> BTreeMap<&'static str, String> {
        self.0.providers()
    }

    fn event_fd(&self) -> i32 {
        self.0.events().waker().as_fd().as_raw_fd()
    }

    fn take_events(&self) -> Vec<Event> {
        let events = self.0.events().take().into_iter();
        events.map(Event::from).collect()
    }

    fn set_sockets(&mut self, py: Python<'_>, wanted: Vec<Py<OuterSocket>>) -> PyResult<()> {
        let wanted: Vec<_> = wanted.iter().map(|socket| socket.get().0).collect();
        py.detach(|| self.0.set_sockets(&wanted))
            .map_err(|error| os_error(&error))
    }

    fn change_sas(
        &self,
        py: Python<'_>,
        outbound: Vec<Py<OutboundSa>>,
        inbound: Vec<Py<InboundSa>>,
        replaced: Vec<Py<ReplacedSa>>,
    ) -> PyResult<()> {
        py.detach(|| {
            let of = |direction| {
                let replaced = replaced.iter().map(Py::get);
                let replaced = replaced.filter(move |sa| sa.direction == direction);
                replaced.map(ReplacedSa::wanted).collect()
            };
            self.0.change_sas(SadChange {
                outbound: outbound.iter().map(|sa| sa.get().wanted()).collect(),
                inbound: inbound.iter().map(|sa| sa.get().wanted()).collect(),
                replaced_outbound: of(Direction::Outbound),
                replaced_inbound: of(Direction::Inbound),
            })
        })
        .map_err(sa_refused)
    }

    fn remove(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<SaCounters>> {
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = py
            .detach(|| self.0.remove(&wanted))
            .map_err(|error| os_error(&error))?;
        Ok(wanted
            .iter()
            .zip(found)
            .map(|(name, (outbound, sa))| SaCounters::new(name, outbound, sa))
            .collect())
    }

    fn sent(&self, name: &str) -> PyResult<u64> {
        self.0.sent(name).map_err(|error| os_error(&error))
    }

    fn replace_policies(&self, py: Python<'_>, policies: Vec<Py<Policy>>) -> PyResult<()> {
        py.detach(|| {
            let policies = policies.iter().map(|policy| policy.get().0.clone());
            self.0.replace_policies(policies.collect())
        })
        .map_err(|error| os_error(&error))
    }

    fn extend_lease(&self, name: &str, lease: &Lease) -> PyResult<()> {
        self.0
            .extend_lease(name, lease.0)
            .map_err(|error| os_error(&error))
    }

    #[allow(clippy::needless_pass_by_value)] // PyO3 makes it
    fn watch_numbers(&self, notices: HashMap<String, u64>) {
        self.0.watch_numbers(&notices);
    }

    fn place_peer(&self, name: &str, address: IpAddr, port: u16) {
        self.0.place_peer(name, SocketAddr::new(address, port));
    }

    fn keepalive(&self, name: &str) -> PyResult<()> {
        self.0.keepalive(name).map_err(|error| os_error(&error))
    }

    fn dummy(&self, name: &str) -> PyResult<()> {
        self.0.dummy(name).map_err(|error| os_error(&error))
    }

    fn forget_flows(&self) -> PyResult<()> {
        self.0.forget_flows().map_err(|error| os_error(&error))
    }

    fn sas(&self) -> Vec<SaCounters> {
        let sas = self.0.sas().into_iter();
        sas.map(|(name, outbound, sa)| SaCounters::new(&name, outbound, sa))
            .collect()
    }

    fn advanced_replay_floors(&self) -> HashMap<String, u64> {
        let advanced = self.0.advanced_replay_floors().into_iter();
        advanced
            .map(|(name, highest)| (name.to_string(), highest))
            .collect()
    }

    fn refused(&self) -> Vec<Refused> {
        self.0.refused().into_iter().map(Refused::from).collect()
    }

    fn openings(&self) -> Vec<Opening> {
        self.0.openings().into_iter().map(Opening::from).collect()
    }

    fn lane_status(&self) -> LaneStatus {
        self.0.lanes().into()
    }

    fn lane_flows(&self, py: Python<'_>) -> PyResult<HashMap<String, u64>> {
        let flows = py.detach(|| self.0.lane_flows());
        let flows = flows.map_err(|error| os_error(&error))?.into_iter();
        Ok(flows.map(|(sa, count)| (sa.to_string(), count)).collect())
    }

    #[pyo3(signature = (socket))]
    fn relay_ike(&self, socket: Option<RawFd>) -> PyResult<()> {
        self.0.relay_ike(socket).map_err(|error| os_error(&error))
    }

    fn send_ike(
        &self,
        source: IpAddr,
        destination: IpAddr,
        port: u16,
        message: &[u8],
    ) -> PyResult<()> {
        self.0
            .send_ike(source, SocketAddr::new(destination, port), message)
            .map_err(|error| os_error(&error))
    }

    fn ike_passed(&self) -> u64 {
        self.0.ike_passed()
    }

    fn start_profile(&self) {
        self.0.stages().begin();
    }

    fn stop_profile(&self) {
        self.0.stages().end();
    }

    fn stage_times(&self) -> Vec<StageTimes> {
        let times = self.0.stages().times().into_iter();
        times.map(StageTimes::from).collect()
    }

    fn bulk_on_lane0(&self) -> u64 {
        self.0.bulk_on_lane0()
    }

    fn rest(&self, direction: Direction) -> Counters {
        let (outbound, inbound) = self.0.rest();
        Counters(match direction {
            Direction::Outbound => outbound,
            Direction::Inbound => inbound,
        })
    }
}
