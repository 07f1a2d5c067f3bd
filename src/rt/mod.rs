//! The only place that names glommio: executors, tasks, time, channels, sockets and helper threads.
//!
//! glommio 0.9 has sharp edges; this module is where they are contained, so that nobody else has to know them:
//!
//! * A spawned task is never cancelled: [`spawn`] detaches, every task runs to its end (a cancelled one leaks).
//! * A panic never reaches the executor: [`spawn`] catches it, logs it and counts it in [`caught_panics`].
//! * glommio's one blocking thread is never used: blocking work goes to a [`HelperPool`].
//! * No stream time-outs of glommio: [`TcpStream::set_deadline`] shuts the socket down, which ends a pending read.
//! * One `SO_REUSEPORT` listener per executor, with accept errors classified ([`TcpListener::accept`]).
//! * [`probe`] says before the start what is missing (io_uring, kernel, memlock) and how to mend it.
//!
//! It is also the one place that reads clocks ([`now`], [`unix_ms`]) and makes threads.

mod adopt;
mod channel;
mod executor;
mod helper;
mod helper_socket;
mod net;
mod probe;
mod task;

pub use channel::{Closed, OneshotReceiver, OneshotSender, Receiver, Sender, TrySendError, channel, oneshot};
pub use executor::{Executor, Handle, run_to_end, start, thread};
pub use helper::{HelperError, HelperPool};
pub use helper_socket::HelperSocket;
pub use net::{DeadlineHandle, TcpListener, TcpStream, UdpSocket, port_is_free};
pub use probe::{ProbeError, descriptors_max, probe};
pub use task::{
    Elapsed, Notify, TaskGroup, caught_panics, now, sleep, sleep_until, spawn, timeout, unix_ms, yield_now,
};

pub use crate::tls::Stream;
