//! SIGINT and SIGTERM end a run early; what was counted is still printed.

use ringmail::rt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a signal came.
#[derive(Clone)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// A signal came.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// From now on the first signal is noted; the second ends the process.
pub fn watch() -> io::Result<Interrupted> {
    let interrupted = Interrupted(Arc::default());
    let flag = interrupted.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    rt::thread("signals", move || {
        for _ in signals.forever() {
            if flag.0.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    })?;
    Ok(interrupted)
}
