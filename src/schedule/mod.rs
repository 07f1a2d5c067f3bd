//! When and where a message goes: the delivery scheduler. `docs/scheduler.md` gives the algorithm and its reasons.
//!
//! [`core`] is pure: events and `now` go in, actions and the next deadline come out; it knows no socket, clock, random
//! source, executor or configuration file. [`driver`] runs it on the scheduler's executor. [`pool`], [`lists`],
//! [`index`], [`wheel`], [`fair`], [`replies`] and [`random`] are what the core stores things in; [`site`] is what it knows of one far side, [`path`]
//! of one way there; [`egress`], [`limits`], [`rate`] and [`rules`] are what the configuration says of both; [`router`] says
//! what a domain's next hop is before DNS is asked; [`inflow`] how fast mail may come in.

pub mod core;
pub mod driver;
pub mod egress;
pub mod fair;
pub mod index;
pub mod inflow;
pub mod limits;
pub mod lists;
pub mod path;
pub mod pool;
pub mod random;
pub mod rate;
pub mod replies;
pub mod router;
pub mod rules;
pub mod settings;
pub mod site;
pub mod wheel;

pub use core::Scheduler;
pub use router::Router;
pub use settings::Settings;
