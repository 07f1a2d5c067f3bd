//! The only place that names glommio: executors, tasks, time, channels, sockets, ring files and helper threads.

mod channel;

pub use channel::{Closed, OneshotReceiver, OneshotSender, Receiver, Sender, TrySendError, channel, oneshot};
