//! Lanes: outbound connections that the scheduler opens, uses and closes.
//!
//! One task per lane runs to its end: it waits for jobs (bounded by the idle time-out), connects with the first one,
//! drives [`smtp::client`](crate::smtp::client) over a stream, and answers every job with exactly one
//! `ToScheduler::JobDone`. Where and when to deliver is the scheduler's; what SMTP means is the core's; here is only
//! which address to try next, and octets.
//!
//! A lane ends once, and is reported once: by a `JobDone` whose lane state is not `Open`, or by `LaneClosed`. A job that
//! crosses the end comes back with every recipient `NotTried`.
//!
//! System calls per message on a reused connection: write (MAIL, RCPT, DATA), read, write (content and final dot), read.

mod connection;
mod dead_hosts;
mod lane;
#[cfg(test)]
mod tests;

use crate::bus::{Job, JobDone, LaneId, LaneState, Outcome, ToScheduler};
use crate::config::{Delivery, Timeouts};
use crate::rt;
use crate::spool::{Envelope, Location, SpoolReader, StoredMessage};
use crate::tls::ClientTls;
use connection::Surroundings;
use hashbrown::HashMap;
use lane::Inbox;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How often idle lanes are looked at: an idle time-out passes at most this much late.
const IDLE_TICK: Duration = Duration::from_millis(500);

/// Where messages are read from: the spool, or something simpler in tests.
pub trait Messages: 'static {
    /// A message, readable for as long as it is held.
    type Message: Message + 'static;

    /// Reads one. `cold` says that it was not accepted just now: its pages may have to come from the disk, which must
    /// not happen on this thread. The error is text for log and queue listing.
    fn read(&self, location: Location, cold: bool) -> impl Future<Output = Result<Self::Message, String>>;
}

/// One stored message.
pub trait Message {
    /// Its envelope.
    fn envelope(&self) -> &Envelope;
    /// Trace fields that go before the body, CRLF line ends.
    fn trace(&self) -> &[u8];
    /// Header and body in wire form, without the final dot.
    fn body(&self) -> &[u8];
    /// No line of the body begins with a dot.
    fn no_leading_dots(&self) -> bool;
}

impl Messages for SpoolReader {
    type Message = StoredMessage;

    async fn read(&self, location: Location, cold: bool) -> Result<StoredMessage, String> {
        SpoolReader::read(self, location, !cold).await.map_err(|error| error.to_string())
    }
}

impl Message for StoredMessage {
    fn envelope(&self) -> &Envelope {
        StoredMessage::envelope(self)
    }

    fn trace(&self) -> &[u8] {
        StoredMessage::trace(self)
    }

    fn body(&self) -> &[u8] {
        StoredMessage::body(self)
    }

    fn no_leading_dots(&self) -> bool {
        StoredMessage::no_leading_dots(self)
    }
}

/// The outbound side of one shard. Cloning shares it.
pub struct Outbound<M: Messages>(Rc<Shared<M>>);

impl<M: Messages> Clone for Outbound<M> {
    fn clone(&self) -> Self {
        Outbound(self.0.clone())
    }
}

struct Shared<M: Messages> {
    messages: M,
    to_scheduler: rt::Sender<ToScheduler>,
    /// Of the next connections.
    surroundings: RefCell<Rc<Surroundings>>,
    /// Lanes that take jobs; bounded by the scheduler, which opens them.
    lanes: RefCell<HashMap<LaneId, Rc<Inbox>>>,
    tasks: rt::TaskGroup,
    /// The task that looks for idle lanes runs.
    watching: Cell<bool>,
}

impl<M: Messages> Shared<M> {
    async fn tell(&self, message: ToScheduler) {
        // A scheduler that is gone has stopped: nothing is waiting for the answer, the journal repeats the delivery.
        drop(self.to_scheduler.send(message).await);
    }

    /// Hands a job back untried.
    async fn return_job(&self, job: &Job, lane_state: LaneState) {
        let done = job_done(job, |_| Outcome::NotTried, lane_state);
        self.tell(ToScheduler::JobDone(done)).await;
    }
}

/// An answer that gives each recipient of a job an outcome, with no host reached.
fn job_done(job: &Job, outcome: impl Fn(usize) -> Outcome, lane_state: LaneState) -> JobDone {
    JobDone {
        lane: job.lane,
        queue_id: job.queue_id,
        outcomes: job.recipients.iter().enumerate().map(|(position, &index)| (index, outcome(position))).collect(),
        lane_state,
        remote: None,
        elapsed_us: 0,
        success: None,
    }
}

impl<M: Messages> Outbound<M> {
    /// The outbound side of the current executor's shard.
    pub fn new(
        messages: M,
        to_scheduler: rt::Sender<ToScheduler>,
        tls: ClientTls,
        limits: Delivery,
        timeouts: Timeouts,
    ) -> Outbound<M> {
        let (dead_hosts, chunk_liars) = Default::default();
        Outbound(Rc::new(Shared {
            messages,
            to_scheduler,
            surroundings: RefCell::new(Rc::new(Surroundings { limits, timeouts, tls, dead_hosts, chunk_liars })),
            lanes: RefCell::default(),
            tasks: rt::TaskGroup::default(),
            watching: Cell::new(false),
        }))
    }

    /// `ToShard::Reload`: connections that are opened from now on have these bounds and times.
    pub fn reload(&self, limits: Delivery, timeouts: Timeouts) {
        let mut surroundings = self.0.surroundings.borrow_mut();
        let Surroundings { tls, dead_hosts, chunk_liars, .. } = &**surroundings;
        let (tls, dead_hosts, chunk_liars) = (tls.clone(), dead_hosts.clone(), chunk_liars.clone());
        *surroundings = Rc::new(Surroundings { limits, timeouts, tls, dead_hosts, chunk_liars });
    }

    /// `ToShard::Deliver`: takes a job; never waits.
    pub fn deliver(&self, job: Job) {
        let shared = self.0.clone();
        let known = shared.lanes.borrow().get(&job.lane).cloned();
        match (known, job.open.clone()) {
            (Some(inbox), _) => {
                if let Err(job) = inbox.put(job) {
                    shared.tasks.clone().spawn(async move { shared.return_job(&job, LaneState::Open).await });
                }
            }
            (None, Some(endpoint)) => {
                let lane = job.lane;
                let inbox = Rc::new(Inbox::new(job));
                shared.lanes.borrow_mut().insert(lane, inbox.clone());
                self.watch_idle_lanes();
                shared.tasks.clone().spawn(lane::run(shared, lane, endpoint, inbox));
            }
            // It crossed the lane's end.
            (None, None) => shared.tasks.clone().spawn(async move { shared.return_job(&job, LaneState::Closed).await }),
        }
    }

    /// `ToShard::CloseLane`: ends a lane after the job that it has, if any. The lane reports its end as always.
    pub fn close_lane(&self, lane: LaneId) {
        if let Some(inbox) = self.0.lanes.borrow().get(&lane) {
            inbox.close();
        }
    }

    /// Lanes that are open.
    pub fn lanes(&self) -> usize {
        self.0.lanes.borrow().len()
    }

    /// Closes all lanes and waits until the last one has ended; the caller bounds the wait and may give up on it.
    pub async fn stop(&self) {
        self.0.lanes.borrow().values().for_each(|inbox| inbox.close());
        self.0.tasks.all_ended().await;
    }

    /// Closes lanes that are idle for too long; ends when there is no lane.
    fn watch_idle_lanes(&self) {
        if self.0.watching.replace(true) {
            return;
        }
        let shared = self.0.clone();
        rt::spawn(async move {
            while !shared.lanes.borrow().is_empty() {
                rt::sleep(IDLE_TICK).await;
                let now = rt::now();
                let idle_max = shared.surroundings.borrow().limits.idle_timeout;
                shared.lanes.borrow().values().for_each(|inbox| inbox.close_if_idle(now, idle_max));
            }
            shared.watching.set(false);
        });
    }
}
