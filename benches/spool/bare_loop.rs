//! Group commit of nothing but octets: the same tasks of one executor append to the open batch and wait, and one thread
//! takes the batch whenever the disk is free, writes and syncs it. No record, checksum, envelope, journal or recovery.

use ringmail::rt::{self, OneshotSender};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Octets that the thread takes; `None` when it has.
type Octets = Arc<Mutex<Option<Vec<u8>>>>;

/// A batch as its tasks see it.
struct Batch {
    octets: Octets,
    ended: rt::Notify,
}

/// What the tasks share.
struct Shared {
    open: RefCell<Rc<Batch>>,
    to_writer: Sender<(Octets, OneshotSender<Vec<u8>>)>,
    /// A buffer to use again.
    spare: RefCell<Vec<u8>>,
    written: Cell<u64>,
    running: Cell<usize>,
    all_ended: rt::Notify,
}

impl Shared {
    /// Returns when the octets are durable.
    async fn commit(self: &Rc<Self>, octets: &[u8]) {
        let batch = loop {
            let batch = self.open.borrow().clone();
            let is_open = match &mut *batch.octets.lock().expect("nobody panics") {
                Some(bytes) => {
                    bytes.extend_from_slice(octets);
                    true
                }
                None => false,
            };
            if is_open {
                break batch;
            }
            self.begin_batch();
        };
        batch.ended.notified().await;
    }

    /// Opens a batch and hands it over.
    fn begin_batch(self: &Rc<Self>) {
        let octets: Octets = Arc::new(Mutex::new(Some(self.spare.take())));
        let batch = Rc::new(Batch { octets: octets.clone(), ended: rt::Notify::default() });
        *self.open.borrow_mut() = batch.clone();
        let (done, is_done) = rt::oneshot();
        self.to_writer.send((octets, done)).expect("the thread runs");
        let shared = self.clone();
        rt::spawn(async move {
            let mut buffer = is_done.await.expect("the disk works");
            buffer.clear();
            *shared.spare.borrow_mut() = buffer;
            batch.ended.notify_all();
        });
    }
}

/// Bodies a second that become durable.
pub fn run(file: &File, body: usize, writers: usize, time: Duration) -> f64 {
    let file = file.try_clone().expect("there are descriptors");
    let (to_writer, from_tasks) = channel::<(Octets, OneshotSender<Vec<u8>>)>();
    let writer = rt::thread("writer", move || {
        let mut offset = 0;
        for (octets, done) in from_tasks {
            let mut bytes = octets.lock().expect("nobody panics").take().expect("it is taken once");
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            if offset + bytes.len() as u64 > super::SEGMENT_BYTES {
                offset = 0;
            }
            file.write_all_at(&bytes, offset).expect("the disk has room");
            file.sync_data().expect("the disk works");
            offset += bytes.len() as u64;
            done.send(bytes);
        }
    })
    .expect("a thread can be made");
    let rate = rt::run_to_end("bench", move || async move {
        let nothing = Rc::new(Batch { octets: Arc::default(), ended: rt::Notify::default() });
        let shared = Rc::new(Shared {
            open: RefCell::new(nothing),
            to_writer,
            spare: RefCell::default(),
            written: Cell::new(0),
            running: Cell::new(writers),
            all_ended: rt::Notify::default(),
        });
        let start = rt::now();
        for _ in 0..writers {
            let shared = shared.clone();
            rt::spawn(async move {
                while rt::now() < start + time {
                    shared.commit(&vec![b'x'; body]).await;
                    shared.written.set(shared.written.get() + 1);
                }
                shared.running.set(shared.running.get() - 1);
                shared.all_ended.notify_all();
            });
        }
        while shared.running.get() > 0 {
            shared.all_ended.notified().await;
        }
        shared.written.get() as f64 / rt::now().duration_since(start).as_secs_f64()
    })
    .expect("the executor runs");
    writer.join().expect("the writer ended well");
    rate
}
