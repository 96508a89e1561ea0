//! One worker: a thread that carries packets both ways.

mod batch;
mod busy_poll;
mod inbound;
mod mailbox;
mod outbound;
mod supervise;
mod targets;
mod thread;

pub(crate) use mailbox::{Command, Mailbox};
pub(crate) use supervise::run_supervised;
pub(crate) use thread::Worker;
