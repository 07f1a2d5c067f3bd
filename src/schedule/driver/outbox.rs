//! What goes to another thread, kept here while its channel is full. [`Outbox::push`] never waits.

use crate::rt::{self, Notify, Sender, TrySendError};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The way to one receiver; keeps the order. Its bound is that of what its owner lets be under way at once.
pub(super) struct Outbox<T> {
    sender: Sender<T>,
    shared: Rc<Shared<T>>,
}

struct Shared<T> {
    waiting: RefCell<VecDeque<T>>,
    /// The task holds a value that it has not sent yet.
    sending: Cell<bool>,
    changed: Notify,
    closed: Cell<bool>,
}

impl<T: Send + 'static> Outbox<T> {
    pub(super) fn new(sender: Sender<T>) -> Outbox<T> {
        let shared = Rc::new(Shared {
            waiting: RefCell::default(),
            sending: Cell::new(false),
            changed: Notify::default(),
            closed: Cell::new(false),
        });
        rt::spawn(carry(sender.clone(), shared.clone()));
        Outbox { sender, shared }
    }

    /// Sends now, or when there is room. When the receiver is gone the value is dropped: then the process is ending.
    pub(super) fn push(&self, value: T) {
        let mut waiting = self.shared.waiting.borrow_mut();
        if waiting.is_empty() && !self.shared.sending.get() {
            match self.sender.try_send(value) {
                Err(TrySendError::Full(value)) => waiting.push_back(value),
                Ok(()) | Err(TrySendError::Closed(_)) => return,
            }
        } else {
            waiting.push_back(value);
        }
        drop(waiting);
        self.shared.changed.notify_all();
    }

    /// Lets the task end when nothing waits any more.
    pub(super) fn close(&self) {
        self.shared.closed.set(true);
        self.shared.changed.notify_all();
    }
}

async fn carry<T: Send>(sender: Sender<T>, shared: Rc<Shared<T>>) {
    loop {
        let changed = shared.changed.notified();
        let next = shared.waiting.borrow_mut().pop_front();
        match next {
            Some(value) => {
                shared.sending.set(true);
                let sent = sender.send(value).await;
                shared.sending.set(false);
                if sent.is_err() {
                    shared.waiting.borrow_mut().clear();
                    return;
                }
            }
            None if shared.closed.get() => return,
            None => changed.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_channel_delays_but_never_reorders_or_loses() {
        let received = rt::run_to_end("test", || async {
            let (sender, mut receiver) = rt::channel(2);
            let outbox = Outbox::new(sender);
            (0..10).for_each(|n| outbox.push(n));
            let mut received = Vec::new();
            for n in 10..30 {
                received.extend(receiver.recv().await);
                outbox.push(n);
            }
            while received.len() < 30 {
                received.extend(receiver.recv().await);
            }
            outbox.close();
            received
        });
        assert_eq!(received.expect("the executor runs"), (0..30).collect::<Vec<_>>());
    }
}
