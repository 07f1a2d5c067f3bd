//! Helper threads for work that would hold up an executor: password hashing, blocking file operations.

use super::channel::oneshot;
use crossbeam::channel::{Sender, TrySendError, bounded};
use parking_lot::Mutex;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

type Work = Box<dyn FnOnce() + Send>;

/// A few plain threads behind one bounded queue. Cloning shares it; the threads end when the last clone is dropped.
#[derive(Clone)]
pub struct HelperPool {
    name: &'static str,
    queue: Sender<Work>,
}

/// Why helper work gave no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HelperError {
    /// The queue is full: too much of this work is waiting; nothing was done.
    #[error("too much work is waiting")]
    Full,
    /// The work panicked (logged and counted).
    #[error("the work failed inside")]
    Panicked,
}

impl HelperPool {
    /// Starts `threads` threads that share a queue of at most `queue_len` waiting jobs.
    pub fn new(name: &'static str, threads: usize, queue_len: usize) -> io::Result<HelperPool> {
        let (queue, work) = bounded::<Work>(queue_len);
        for _ in 0..threads {
            let work = work.clone();
            super::thread(name, move || {
                for job in work {
                    if let Err(payload) = std::panic::catch_unwind(AssertUnwindSafe(job)) {
                        super::task::note_panic("helper job", &*payload);
                    }
                }
            })?;
        }
        Ok(HelperPool { name, queue })
    }

    /// Runs the work on one of the threads. Dropping the future does not stop the work.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, HelperError> {
        let (sender, receiver) = oneshot();
        self.submit(move || sender.send(work()))?;
        receiver.await.ok_or(HelperError::Panicked)
    }

    /// Runs the work on one of the threads; nobody waits for it.
    pub fn submit(&self, work: impl FnOnce() + Send + 'static) -> Result<(), HelperError> {
        self.queue.try_send(Box::new(work)).map_err(|error| match error {
            TrySendError::Full(_) => HelperError::Full,
            TrySendError::Disconnected(_) => HelperError::Panicked,
        })
    }

    /// Runs the work with this value on one of the threads; nobody waits for it. Where the pool takes nothing, the value
    /// comes back.
    pub fn submit_or_return<V: Send + 'static>(
        &self,
        value: V,
        work: impl FnOnce(V) + Send + 'static,
    ) -> Result<(), (V, HelperError)> {
        if self.queue.is_full() {
            return Err((value, HelperError::Full));
        }
        // Another thread may fill the queue in between: so the value waits where it can be taken back from.
        let place = Arc::new(Mutex::new(Some(value)));
        let taken = place.clone();
        let submitted = self.submit(move || {
            let value = taken.lock().take();
            work(value.expect("only a job that was not queued loses its value"));
        });
        submitted.map_err(|error| (place.lock().take().expect("the job was not queued"), error))
    }

    /// Jobs that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

impl std::fmt::Debug for HelperPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HelperPool({}, {} waiting)", self.name, self.queue.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::run_to_end;

    #[test]
    fn results_come_back_and_a_panic_is_an_error() {
        let pool = HelperPool::new("test", 2, 16).unwrap();
        run_to_end("test", || async {
            assert_eq!(pool.run(|| 6 * 7).await, Ok(42));
            assert_eq!(pool.run(|| -> u8 { panic!("bad job") }).await, Err(HelperError::Panicked));
            assert_eq!(pool.run(|| 1).await, Ok(1));
        })
        .unwrap();
    }

    #[test]
    fn what_a_full_pool_does_not_take_comes_back() {
        let pool = HelperPool::new("test", 1, 1).unwrap();
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        pool.submit(move || {
            let _ = blocked.recv();
        })
        .unwrap();
        // The thread is at work on the first job, one more waits, and nothing else fits.
        let mut came_back = None;
        while came_back.is_none() {
            came_back = pool.submit_or_return("value", |_| ()).err();
        }
        assert_eq!(came_back, Some(("value", HelperError::Full)));
        drop(release);
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut pending = sender;
        while let Err((returned, _)) = pool.submit_or_return(pending, |sender| sender.send("taken").unwrap()) {
            pending = returned;
            std::thread::yield_now();
        }
        assert_eq!(receiver.recv(), Ok("taken"));
    }
}
