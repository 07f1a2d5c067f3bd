//! The life of one lane: wait for a job, do it, report it, until something ends it.

use super::connection::{Connection, Content, NoSession};
use super::{Message, Messages, Shared, job_done};
use crate::bus::{
    Deferral, DeferralScope, Endpoint, Job, JobDone, LaneId, LaneState, Outcome, Protocol, SuccessReport, ToScheduler,
};
use crate::rt;
use crate::smtp::client::{Request, Trouble};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Jobs that wait for one lane. The scheduler sends the next one when it has heard of the last, so this is never
/// reached; it keeps a mistake there from filling memory here.
const JOBS_MAX: usize = 64;

/// Jobs of one lane, on their way from the shard's loop to the lane's task.
pub(super) struct Inbox {
    jobs: RefCell<VecDeque<Job>>,
    /// No job comes any more.
    closed: Cell<bool>,
    /// Since when the task waits for a job; `None` while it works.
    idle_since: Cell<Option<Instant>>,
    waker: Cell<Option<Waker>>,
}

impl Inbox {
    pub(super) fn new(job: Job) -> Inbox {
        Inbox {
            jobs: RefCell::new(VecDeque::from([job])),
            closed: Cell::new(false),
            idle_since: Cell::new(None),
            waker: Cell::new(None),
        }
    }

    /// Gives the job back where there is no room.
    pub(super) fn put(&self, job: Job) -> Result<(), Job> {
        let mut jobs = self.jobs.borrow_mut();
        if jobs.len() >= JOBS_MAX {
            return Err(job);
        }
        jobs.push_back(job);
        self.wake();
        Ok(())
    }

    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    pub(super) fn close_if_idle(&self, now: Instant, idle_max: Duration) {
        if self.idle_since.get().is_some_and(|since| now.saturating_duration_since(since) >= idle_max) {
            self.close();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next job; `None` when the lane is to end. A job that was there before the lane was closed still comes out.
    async fn next(&self) -> Option<Job> {
        let job = poll_fn(|cx| {
            if let Some(job) = self.jobs.borrow_mut().pop_front() {
                return Poll::Ready(Some(job));
            }
            if self.closed.get() {
                return Poll::Ready(None);
            }
            if self.idle_since.get().is_none() {
                self.idle_since.set(Some(rt::now()));
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        });
        let job = job.await;
        self.idle_since.set(None);
        job
    }
}

/// Takes the lane off the books when its task ends; where that is a panic it answers the job that was in hand.
struct Guard<M: Messages> {
    shared: Rc<Shared<M>>,
    lane: LaneId,
    inbox: Rc<Inbox>,
    in_hand: RefCell<Option<Job>>,
}

impl<M: Messages> Guard<M> {
    /// From here on jobs for this lane are returned by [`super::Outbound::deliver`]; those that came before are here.
    fn unregister(&self) -> Vec<Job> {
        self.shared.lanes.borrow_mut().remove(&self.lane);
        self.inbox.jobs.borrow_mut().drain(..).collect()
    }
}

impl<M: Messages> Drop for Guard<M> {
    fn drop(&mut self) {
        // An executor that ends drops its tasks as well: then nobody listens, and nothing can be spawned.
        let Some(job) = self.in_hand.take().filter(|_| std::thread::panicking()) else { return };
        let crossed = self.unregister();
        let shared = self.shared.clone();
        rt::spawn(async move {
            let deferral = Deferral { scope: DeferralScope::Recipient, reply: Trouble::Internal.to_reply() };
            let done = job_done(&job, |_| Outcome::Deferred(deferral.clone()), LaneState::Failed);
            shared.tell(ToScheduler::JobDone(done)).await;
            for job in crossed {
                shared.return_job(&job, LaneState::Failed).await;
            }
        });
    }
}

/// Runs a lane to its end.
pub(super) async fn run<M: Messages>(shared: Rc<Shared<M>>, lane: LaneId, endpoint: Arc<Endpoint>, inbox: Rc<Inbox>) {
    let guard = Guard { shared: shared.clone(), lane, inbox: inbox.clone(), in_hand: RefCell::new(None) };
    let mut connection = None;
    while let Some(job) = inbox.next().await {
        *guard.in_hand.borrow_mut() = Some(job.clone());
        let started = rt::now();
        let mut done = perform(&shared, &endpoint, &mut connection, &job).await;
        done.elapsed_us = rt::now().saturating_duration_since(started).as_micros().try_into().unwrap_or(u32::MAX);
        if done.lane_state == LaneState::Open && inbox.closed.get() {
            done.lane_state = LaneState::Closed;
        }
        guard.in_hand.take();
        let lane_state = done.lane_state;
        if lane_state == LaneState::Open {
            shared.tell(ToScheduler::JobDone(done)).await;
            continue;
        }
        let crossed = guard.unregister();
        shared.tell(ToScheduler::JobDone(done)).await;
        return end(&shared, crossed, lane_state, connection).await;
    }
    let crossed = guard.unregister();
    shared.tell(ToScheduler::LaneClosed(lane)).await;
    end(&shared, crossed, LaneState::Closed, connection).await;
}

async fn end<M: Messages>(
    shared: &Shared<M>,
    crossed: Vec<Job>,
    lane_state: LaneState,
    connection: Option<Connection>,
) {
    for job in crossed {
        shared.return_job(&job, lane_state).await;
    }
    if let Some(connection) = connection {
        connection.quit().await;
    }
}

/// Does one job; the connection is made with the first one.
async fn perform<M: Messages>(
    shared: &Shared<M>,
    endpoint: &Endpoint,
    connection: &mut Option<Connection>,
    job: &Job,
) -> JobDone {
    let message = match read(shared, job).await {
        Ok(message) => message,
        Err(trouble) => {
            let deferral = Deferral { scope: DeferralScope::Recipient, reply: trouble.to_reply() };
            // A lane that has not connected yet has nothing to keep open.
            let lane_state = if connection.is_some() { LaneState::Open } else { LaneState::Closed };
            return job_done(job, |_| Outcome::Deferred(deferral.clone()), lane_state);
        }
    };
    match attempt(shared, endpoint, connection, job, &message).await {
        Attempt::Ended(done) => done,
        // The host is known as a liar now, so that the second session does without; a third is not needed.
        Attempt::ChunksFailed(done) => match attempt(shared, endpoint, connection, job, &message).await {
            Attempt::Ended(done) => done,
            Attempt::ChunksFailed(_) => done,
        },
    }
}

/// How one transaction ended.
enum Attempt {
    Ended(JobDone),
    /// The host does not know BDAT, which it offered; the session is over.
    ChunksFailed(JobDone),
}

async fn attempt<M: Messages>(
    shared: &Shared<M>,
    endpoint: &Endpoint,
    connection: &mut Option<Connection>,
    job: &Job,
    message: &M::Message,
) -> Attempt {
    let surroundings = shared.surroundings.borrow().clone();
    let open = match connection {
        Some(open) => open,
        None => match Connection::open(endpoint, &surroundings).await {
            Ok(open) => connection.insert(open),
            Err(NoSession { outcome, remote }) => {
                let done = job_done(job, |_| outcome.clone(), LaneState::Failed);
                return Attempt::Ended(JobDone { remote, ..done });
            }
        },
    };
    let envelope = message.envelope();
    let content = Content { trace: message.trace(), body: message.body(), no_leading_dots: message.no_leading_dots() };
    let request = Request {
        envelope,
        recipients: &job.recipients,
        size: content.size(),
        header_is_eight_bit: envelope.smtputf8 && header_is_eight_bit(content.trace, content.body),
        host_is_verified: envelope.requiretls && open.is_verified(),
    };
    let (outcomes, lane_state) = open.transact(&request, content).await;
    let remote = Some(open.remote());
    // A host with DSN has taken over the duty to tell (RFC 3461 section 5.2.2).
    let told_here = !open.server().dsn && request.envelope.wants_success(&job.recipients);
    let success = told_here.then_some(match endpoint.protocol {
        Protocol::Smtp => SuccessReport::Relayed,
        Protocol::Lmtp => SuccessReport::Delivered,
    });
    let chunks_failed = open.chunks_failed();
    if lane_state != LaneState::Open && !open.is_open() {
        *connection = None;
    }
    let outcomes = job.recipients.iter().copied().zip(outcomes).collect();
    let done = JobDone { lane: job.lane, queue_id: job.queue_id, outcomes, lane_state, remote, elapsed_us: 0, success };
    if chunks_failed { Attempt::ChunksFailed(done) } else { Attempt::Ended(done) }
}

async fn read<M: Messages>(shared: &Shared<M>, job: &Job) -> Result<M::Message, Trouble> {
    let message = shared.messages.read(job.location, job.attempts > 0).await.map_err(Trouble::Unreadable)?;
    let known = message.envelope().recipients.len();
    if job.recipients.is_empty() || job.recipients.iter().any(|&index| usize::from(index) >= known) {
        return Err(Trouble::Unreadable("its envelope lacks a recipient of the job".to_owned()));
    }
    Ok(message)
}

fn header_is_eight_bit(trace: &[u8], body: &[u8]) -> bool {
    let header_len = memchr::memmem::find(body, b"\r\n\r\n").unwrap_or(body.len());
    !trace.is_ascii() || !body[..header_len].is_ascii()
}
