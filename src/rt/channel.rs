//! Bounded channels between any threads and one receiver, and one-shot answers.
//!
//! Built on `crossbeam`'s lock-free queue; wake-ups of tasks go through the waker (glommio's wakers may be woken from
//! any thread), waiting senders are kept in a list behind a lock that only a full queue touches.

use atomic_waker::AtomicWaker;
use crossbeam::queue::ArrayQueue;
use parking_lot::{Condvar, Mutex};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

struct Shared<T> {
    queue: ArrayQueue<T>,
    receiver: AtomicWaker,
    /// Senders that found the queue full; woken all at once when there is room again.
    waiting: Mutex<Vec<Waker>>,
    /// `waiting` is not empty; lets the receiver skip the lock.
    has_waiting: AtomicBool,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

/// The sending half; cheap to clone.
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving half.
pub struct Receiver<T>(Arc<Shared<T>>);

/// The receiver is gone; here is the value back.
#[derive(Debug)]
pub struct Closed<T>(pub T);

/// Why a value was not taken.
#[derive(Debug)]
pub enum TrySendError<T> {
    /// The queue is full.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

/// Makes a bounded channel; `capacity` is at least 1.
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        receiver: AtomicWaker::new(),
        waiting: Mutex::new(Vec::new()),
        has_waiting: AtomicBool::new(false),
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Shared<T> {
    fn wake_senders(&self) {
        if self.has_waiting.load(Ordering::SeqCst) {
            let woken = {
                let mut waiting = self.waiting.lock();
                self.has_waiting.store(false, Ordering::SeqCst);
                std::mem::take(&mut *waiting)
            };
            woken.into_iter().for_each(Waker::wake);
        }
    }
}

impl<T: Send> Sender<T> {
    /// Puts the value in if there is room now.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.0.receiver_gone.load(Ordering::Acquire) {
            return Err(TrySendError::Closed(value));
        }
        match self.0.queue.push(value) {
            Ok(()) => {
                self.0.receiver.wake();
                Ok(())
            }
            Err(value) => Err(TrySendError::Full(value)),
        }
    }

    /// Waits for room, then puts the value in.
    pub async fn send(&self, value: T) -> Result<(), Closed<T>> {
        let mut slot = Some(value);
        poll_fn(move |cx| self.poll_send(&mut slot, cx)).await
    }

    fn poll_send(&self, slot: &mut Option<T>, cx: &mut Context<'_>) -> Poll<Result<(), Closed<T>>> {
        let value = slot.take().expect("polled again after it was ready");
        let value = match self.try_send(value) {
            Ok(()) => return Poll::Ready(Ok(())),
            Err(TrySendError::Closed(value)) => return Poll::Ready(Err(Closed(value))),
            Err(TrySendError::Full(value)) => value,
        };
        // Announce first, try again after: a receiver that made room in between either sees the announcement or
        // leaves the room to the second try.
        {
            let mut waiting = self.0.waiting.lock();
            waiting.push(cx.waker().clone());
            self.0.has_waiting.store(true, Ordering::SeqCst);
        }
        match self.try_send(value) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(TrySendError::Closed(value)) => Poll::Ready(Err(Closed(value))),
            Err(TrySendError::Full(value)) => {
                *slot = Some(value);
                Poll::Pending
            }
        }
    }

    /// Waits for room on a plain thread.
    pub fn blocking_send(&self, value: T) -> Result<(), Closed<T>> {
        let mut slot = Some(value);
        block_on_poll(|cx| self.poll_send(&mut slot, cx))
    }

    /// Values in the queue now.
    pub fn len(&self) -> usize {
        self.0.queue.len()
    }

    /// Nothing is in the queue now.
    pub fn is_empty(&self) -> bool {
        self.0.queue.is_empty()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.receiver.wake();
        }
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender({} waiting)", self.0.queue.len())
    }
}

impl<T: Send> Receiver<T> {
    /// The next value, or `None` when every sender is gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next value if one is there now.
    pub fn try_recv(&mut self) -> Option<T> {
        let value = self.0.queue.pop();
        if value.is_some() {
            self.0.wake_senders();
        }
        value
    }

    /// Polls for the next value; for use in a larger `poll_fn`.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        self.0.receiver.register(cx.waker());
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        if self.0.senders.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        // The last sender may have pushed just before it went.
        Poll::Ready(self.try_recv())
    }

    /// The next value, on a plain thread.
    pub fn blocking_recv(&mut self) -> Option<T> {
        block_on_poll(|cx| self.poll_recv(cx))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.receiver_gone.store(true, Ordering::Release);
        while self.0.queue.pop().is_some() {}
        self.0.has_waiting.store(true, Ordering::SeqCst);
        self.0.wake_senders();
    }
}

struct OneshotShared<T> {
    value: Mutex<Option<T>>,
    done: AtomicBool,
    waker: AtomicWaker,
}

/// Takes the one value; dropping it unsent answers `None`.
pub struct OneshotSender<T>(Arc<OneshotShared<T>>);

/// Future of the one value; `None` when the sender was dropped.
pub struct OneshotReceiver<T>(Arc<OneshotShared<T>>);

/// Makes a channel for one value.
pub fn oneshot<T: Send>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let shared =
        Arc::new(OneshotShared { value: Mutex::new(None), done: AtomicBool::new(false), waker: AtomicWaker::new() });
    (OneshotSender(shared.clone()), OneshotReceiver(shared))
}

impl<T> OneshotSender<T> {
    /// Hands the value over.
    pub fn send(self, value: T) {
        *self.0.value.lock() = Some(value);
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl<T> std::fmt::Debug for OneshotSender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OneshotSender")
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if !self.0.done.load(Ordering::Acquire) {
            self.0.waker.register(cx.waker());
            if !self.0.done.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        Poll::Ready(self.0.value.lock().take())
    }
}

impl<T> OneshotReceiver<T> {
    /// Waits on a plain thread.
    pub fn wait(mut self) -> Option<T> {
        block_on_poll(|cx| Pin::new(&mut self).poll(cx))
    }
}

/// Wakes a plain thread.
struct ThreadWaker {
    woken: Mutex<bool>,
    condition: Condvar,
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.condition.notify_one();
    }
}

/// Drives a poll function on a plain thread.
fn block_on_poll<R>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<R>) -> R {
    let thread = Arc::new(ThreadWaker { woken: Mutex::new(false), condition: Condvar::new() });
    let waker = Waker::from(thread.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(value) = poll(&mut cx) {
            return value;
        }
        let mut woken = thread.woken.lock();
        while !*woken {
            thread.condition.wait(&mut woken);
        }
        *woken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_many_senders_all_arrive_through_a_small_queue() {
        let (sender, mut receiver) = channel::<u64>(3);
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let sender = sender.clone();
                #[expect(clippy::disallowed_methods, reason = "test threads")]
                std::thread::spawn(move || (0..5_000).for_each(|n| sender.blocking_send(thread * 10_000 + n).unwrap()))
            })
            .collect();
        drop(sender);
        let mut seen = Vec::new();
        while let Some(value) = receiver.blocking_recv() {
            seen.push(value);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        seen.sort_unstable();
        let expected: Vec<u64> = (0..4u64).flat_map(|thread| (0..5_000).map(move |n| thread * 10_000 + n)).collect();
        assert_eq!(seen, expected);
    }

    /// The sleeping executor must be woken by the other one each time: a lost wake-up hangs this test.
    #[test]
    fn two_executors_wake_each_other_every_time() {
        const ROUNDS: u32 = 20_000;
        let (to_far, mut far) = channel::<u32>(1);
        let (to_near, mut near) = channel::<u32>(1);
        let echo = crate::rt::start(crate::rt::Executor { name: "echo".into(), cpu: None }, move || async move {
            while let Some(value) = far.recv().await {
                to_near.send(value).await.unwrap();
            }
        });
        crate::rt::run_to_end("test", || async {
            for round in 0..ROUNDS {
                to_far.send(round).await.unwrap();
                assert_eq!(near.recv().await, Some(round));
            }
            drop(to_far);
        })
        .unwrap();
        echo.unwrap().join().unwrap();
    }

    #[test]
    fn a_dropped_receiver_gives_the_value_back() {
        let (sender, receiver) = channel(1);
        drop(receiver);
        assert!(matches!(sender.blocking_send(7), Err(Closed(7))));
    }

    #[test]
    fn a_dropped_oneshot_sender_answers_none() {
        let (sender, receiver) = oneshot::<u8>();
        drop(sender);
        assert_eq!(receiver.wait(), None);
    }
}
