//! One worker: a thread that carries packets both ways.

mod arriving;
mod batch;
mod carried;
mod full_sockets;
mod inbound;
mod keepalives;
mod latency;
mod mailbox;
mod newest;
mod outbound;
mod own_sockets;
mod path_mtu;
mod preference;
mod sa_group;
mod sealing;
mod sender;
mod sending;
mod supervise;
mod targets;
mod thread;
mod too_big;
mod turn;
mod waiting;
mod writing;

pub(crate) use latency::LowLatency;
pub(crate) use mailbox::{Command, Mailbox};
pub(crate) use supervise::run_supervised;
pub(crate) use thread::Worker;
