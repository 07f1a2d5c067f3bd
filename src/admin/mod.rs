//! The admin server: health, metrics and the queue over HTTP/1.1, on the control executor.
//!
//! It has no login; its address is loopback unless the configuration says otherwise. It knows nothing of mail: what is
//! asked about the queue goes to the scheduler (`bus::AdminRequest`) and its JSON comes back as it is.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /healthz` | 200 while every executor moves, else 503 with their names |
//! | `GET /readyz` | 200 while mail is accepted everywhere, else 503 with the reasons |
//! | `GET /metrics` | Prometheus text format |
//! | `GET /v1/queue?limit=N&FILTER` | the oldest N (default 1,000) messages that match, JSON |
//! | `GET /v1/queue/ID` | one message, JSON; 404 when it is not queued |
//! | `GET /v1/summary` | counts by site and state, JSON |
//! | `POST /v1/reload` | take the changed configuration: JSON; 422 with the reason when it stays as it was |
//! | `POST /v1/queue/flush?FILTER` | try now what matches, JSON |
//! | `POST /v1/queue/ORDER?FILTER` | hold, release, delete or bounce what matches; `all=true` without a filter |
//! | `GET /v1/sites` | every site, JSON |
//! | `POST /v1/sites/suspend?site=NAME`, `.../resume?site=NAME` | stop sending there, or go on |
//! | `GET /v1/explain?recipient=ADDRESS` | what would happen to it now, JSON |
//!
//! FILTER: any of `id`, `sender`, `recipient`, `domain`, `site`; all that is given must hold.

mod http;
mod query;
mod requests;

use crate::bus::ToScheduler;
use crate::reload::Reloader;
use crate::rt;
use crate::telemetry::{Meter, Publisher, notify};
use requests::Answer;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Connections at once; more are closed unread.
const CONNECTIONS_MAX: usize = 64;
/// Time between two looks at counters and hearts.
const TICK: Duration = Duration::from_secs(1);
/// Time that the scheduler has for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What the server stands on.
pub struct Context {
    /// Where it listens; `None` turns the server off, counters and watchdog go on.
    pub listener: Option<rt::TcpListener>,
    /// Counters of the process.
    pub publisher: Publisher,
    /// The control executor's own meter; this part beats its heart.
    pub meter: Arc<Meter>,
    /// Takes questions about the queue.
    pub scheduler: rt::Sender<ToScheduler>,
    /// Takes a changed configuration; `None` where there is nothing to reload.
    pub reload: Option<Reload>,
}

/// Reloads on a helper thread, for it reads files.
pub struct Reload {
    /// Does it.
    pub reloader: Arc<Reloader>,
    /// Where.
    pub pool: rt::HelperPool,
}

struct Shared {
    publisher: RefCell<Publisher>,
    scheduler: rt::Sender<ToScheduler>,
    reload: Option<Reload>,
}

/// Serves until `stop` answers or is dropped: counts, watches, feeds the watchdog, and answers requests. Returns when
/// the last answer was given. Runs on the control executor.
pub async fn run(context: Context, stop: rt::OneshotReceiver<()>) {
    let Context { listener, publisher, meter, scheduler, reload } = context;
    let shared = Rc::new(Shared { publisher: RefCell::new(publisher), scheduler, reload });
    let listener = listener.map(Rc::new);
    let connections = rt::TaskGroup::default();
    rt::spawn(meter.clone().beat());
    rt::spawn(watch(shared.clone(), meter.clone()));
    if let Some(listener) = listener.clone() {
        rt::spawn(accept(listener, shared, connections.clone()));
    }
    meter.set_ready();
    stop.await;
    if let Some(listener) = listener {
        listener.stop();
    }
    connections.all_ended().await;
    meter.retire();
}

async fn accept(listener: Rc<rt::TcpListener>, shared: Rc<Shared>, connections: rt::TaskGroup) {
    while let Ok((stream, _)) = listener.accept().await {
        if connections.running() >= CONNECTIONS_MAX {
            continue;
        }
        let shared = shared.clone();
        connections.spawn(async move {
            http::serve(stream, |request| {
                let shared = shared.clone();
                async move { shared.answer(request).await }
            })
            .await;
        });
    }
}

/// Publishes once a second, and tells the service manager as often as it wants that every executor moves: when one
/// does not, the silence makes it restart the process.
async fn watch(shared: Rc<Shared>, meter: Arc<Meter>) {
    let interval = notify::watchdog_interval();
    let mut next_ping = rt::now();
    while !meter.is_retired() {
        let now = rt::now();
        let stalled = {
            let mut publisher = shared.publisher.borrow_mut();
            publisher.publish(now);
            publisher.stalled(now)
        };
        if !stalled.is_empty() {
            tracing::error!("executors that do not move: {}", stalled.join(", "));
        } else if let Some(interval) = interval
            && now >= next_ping
        {
            notify::watchdog();
            next_ping = now + interval;
        }
        rt::sleep(interval.map_or(TICK, |interval| TICK.min(interval))).await;
    }
}

impl Shared {
    async fn answer(&self, request: requests::Request) -> Answer {
        match request {
            requests::Request::Health => {
                let now = rt::now();
                let stalled = self.publisher.borrow().stalled(now);
                Answer::of_checks(stalled.into_iter().map(|name| format!("{name}: does not move")).collect())
            }
            requests::Request::Ready => {
                let readiness = self.publisher.borrow().readiness();
                Answer::of_checks(readiness.err().unwrap_or_default())
            }
            requests::Request::Metrics => {
                let mut publisher = self.publisher.borrow_mut();
                publisher.publish(rt::now());
                Answer::metrics(publisher.render())
            }
            requests::Request::Reload => self.reload().await,
            requests::Request::Scheduler(command) => self.ask(command).await,
        }
    }

    async fn reload(&self) -> Answer {
        let Some(Reload { reloader, pool }) = &self.reload else {
            return Answer::unavailable("nothing can be reloaded");
        };
        let reloader = reloader.clone();
        match pool.run(move || reloader.reload()).await {
            Ok(Ok(warnings)) => Answer::json(serde_json::json!({ "reloaded": true, "warnings": warnings }).to_string()),
            Ok(Err(why)) => Answer::unprocessable(&why),
            Err(error) => Answer::unavailable(&format!("not now: {error}")),
        }
    }

    async fn ask(&self, command: crate::bus::AdminCommand) -> Answer {
        let (answer, answered) = rt::oneshot();
        let request = crate::bus::AdminRequest { command, answer };
        let deadline = rt::now() + ANSWER_TIMEOUT;
        let exchange = async {
            self.scheduler.send(ToScheduler::Admin(request)).await.ok()?;
            answered.await
        };
        match rt::timeout(deadline, exchange).await {
            Ok(Some(Ok(json))) => Answer::json(json),
            Ok(Some(Err(text))) => Answer::not_found(&text),
            Ok(None) => Answer::unavailable("the scheduler has stopped"),
            Err(rt::Elapsed) => Answer::unavailable("the scheduler is too busy to answer"),
        }
    }
}

#[cfg(test)]
mod tests;
