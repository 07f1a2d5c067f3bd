//! What the program tells people and machines about itself: the event log ([`event`]), diagnostics ([`diagnostics`]),
//! counters and distributions ([`counters`]), their publication as metrics ([`publish`]) and the service manager
//! ([`notify`]).
//!
//! Shards only count and hand over values; formatting, merging and rendering happen on the log thread and on the
//! control executor.

pub mod counters;
pub mod diagnostics;
pub mod event;
mod logfmt;
pub mod notify;
pub mod publish;

pub use counters::{Counters, Meter, Telemetry};
pub use event::{Event, EventLog, EventLogThread};
pub use publish::Publisher;
