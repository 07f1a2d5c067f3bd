//! The spool: where a message becomes durable before it is answered with 250. See `docs/spool-format.md`.

pub mod envelope;
pub mod queue_id;

pub use envelope::{BodyType, DsnReturn, Envelope, Notify, Origin, Recipient};
pub use queue_id::{Location, QueueId};
