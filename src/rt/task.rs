//! Tasks, time and waiting on the current executor.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

static CAUGHT_PANICS: AtomicU64 = AtomicU64::new(0);

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock in milliseconds since the UNIX epoch; 0 where the machine believes that it is earlier.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Panics of tasks and helper jobs that were caught since the start: each is a bug that cost one connection.
pub fn caught_panics() -> u64 {
    CAUGHT_PANICS.load(Ordering::Relaxed)
}

/// Logs and counts a caught panic.
pub(super) fn note_panic(where_: &str, payload: &(dyn std::any::Any + Send)) {
    CAUGHT_PANICS.fetch_add(1, Ordering::Relaxed);
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    tracing::error!("a {where_} panicked, the process goes on: {text}");
}

/// Runs a future on the current executor until it ends by itself. A panic ends only this task.
///
/// The future is boxed as it is. An `async` block around it would hold it twice, once as what it captured and once as what
/// it awaits, and so would each further one: idle connections cost several times what they need.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let mut future = Box::pin(future);
    let caught = poll_fn(move |cx| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.unwrap_or_else(|payload| {
            note_panic("task", &*payload);
            Poll::Ready(())
        })
    });
    glommio::spawn_local(caught).detach();
}

/// Waits that long.
pub async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

/// Waits until then.
pub async fn sleep_until(deadline: Instant) {
    let left = deadline.saturating_duration_since(now());
    if !left.is_zero() {
        sleep(left).await;
    }
}

/// Lets other tasks of this executor run first.
pub async fn yield_now() {
    futures_lite::future::yield_now().await;
}

/// A [`timeout`] passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

/// Waits for the future until the deadline, then drops it: only for futures that can be dropped at any time without
/// harm (channels, one-shots, [`Notify`]); sockets have [`super::TcpStream::set_deadline`].
pub async fn timeout<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    futures_lite::future::or(async { Ok(future.await) }, async {
        sleep_until(deadline).await;
        Err(Elapsed)
    })
    .await
}

/// Wakes every task of this executor that waits for something to change. Cloning shares it.
#[derive(Clone, Default)]
pub struct Notify(Rc<NotifyState>);

#[derive(Default)]
struct NotifyState {
    generation: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes all that wait now.
    pub fn notify_all(&self) {
        self.0.generation.set(self.0.generation.get() + 1);
        let woken = std::mem::take(&mut *self.0.waiting.borrow_mut());
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits for the next [`Notify::notify_all`] after this call.
    pub fn notified(&self) -> impl Future<Output = ()> + 'static {
        let state = self.0.clone();
        let seen = state.generation.get();
        poll_fn(move |cx| {
            if state.generation.get() != seen {
                return Poll::Ready(());
            }
            let mut waiting = state.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

/// Counts running tasks, so that their owner can wait for the last one. Cloning shares it.
#[derive(Clone, Default)]
pub struct TaskGroup {
    running: Rc<Cell<usize>>,
    changed: Notify,
}

struct TaskGuard(TaskGroup);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let group = &self.0;
        group.running.set(group.running.get() - 1);
        if group.running.get() == 0 {
            group.changed.notify_all();
        }
    }
}

impl TaskGroup {
    /// Like [`spawn`], counted.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        let mut guard = Some(TaskGuard(self.clone()));
        let mut future = Box::pin(future);
        spawn(poll_fn(move |cx| {
            let polled = future.as_mut().poll(cx);
            if polled.is_ready() {
                drop(guard.take());
            }
            polled
        }));
    }

    /// Tasks that have not ended.
    pub fn running(&self) -> usize {
        self.running.get()
    }

    /// Waits until no task of the group runs.
    pub async fn all_ended(&self) {
        while self.running.get() > 0 {
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::run_to_end;

    #[test]
    fn a_panicking_task_harms_nobody_else() {
        run_to_end("test", || async {
            let before = caught_panics();
            let group = TaskGroup::default();
            group.spawn(async { panic!("one connection") });
            group.all_ended().await;
            assert!(caught_panics() > before);
        })
        .unwrap();
    }

    #[test]
    fn timeout_gives_up_on_what_never_comes_and_takes_what_does() {
        run_to_end("test", || async {
            let never = Notify::default();
            assert_eq!(timeout(now() + Duration::from_millis(5), never.notified()).await, Err(Elapsed));
            assert_eq!(timeout(now() + Duration::from_secs(60), async { 7 }).await, Ok(7));
        })
        .unwrap();
    }
}
