//! Executors: one thread each, pinned or not, and plain threads.
//!
//! A lost executor is fatal for the process: going on with N-1 shards would leave listeners that nobody serves.

use std::io;
use std::time::Duration;

/// What an executor is called and where it runs.
#[derive(Clone, Debug)]
pub struct Executor {
    /// Thread name, at most 15 bytes.
    pub name: String,
    /// Pinned to this CPU.
    pub cpu: Option<usize>,
}

/// A running executor or thread.
pub type Handle = std::thread::JoinHandle<()>;

/// Memory that glommio registers with the ring for direct I/O, which we do not use: the smallest that works.
const RING_MEMORY_BYTES: usize = 64 << 10;

/// Starts an executor on a thread of its own; the future made by `main` runs on it, then the executor ends.
/// A panic or a ring that cannot be made ends the process with code 70 (EX_SOFTWARE) or 71 (EX_OSERR).
pub fn start<F, Fut>(executor: Executor, main: F) -> io::Result<Handle>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let name = executor.name.clone();
    thread(&name, move || {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_here(&executor, main)));
        match caught {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                eprintln!("ringmail: executor {} cannot run: {error}", executor.name);
                std::process::exit(71);
            }
            Err(payload) => {
                super::task::note_panic("executor", &*payload);
                eprintln!("ringmail: executor {} was lost; the process ends", executor.name);
                std::process::exit(70);
            }
        }
    })
}

/// Runs a future on an executor of the current thread until it ends; for tests and short commands.
pub fn run_to_end<F, Fut, T>(name: &str, main: F) -> io::Result<T>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = T>,
{
    run_here(&Executor { name: name.to_owned(), cpu: None }, main)
}

fn run_here<F, Fut, T>(executor: &Executor, main: F) -> io::Result<T>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = T>,
{
    let placement = match executor.cpu {
        Some(cpu) => glommio::Placement::Fixed(cpu),
        None => glommio::Placement::Unbound,
    };
    let local = glommio::LocalExecutorBuilder::new(placement)
        .name(&executor.name)
        .io_memory(RING_MEMORY_BYTES)
        .ring_depth(1024)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(local.run(async move {
        // The first timer of a fresh executor also starts its timer ring: have that done before it matters.
        super::sleep(Duration::from_millis(1)).await;
        main().await
    }))
}

/// Starts a plain thread; the one place that makes threads.
pub fn thread(name: &str, main: impl FnOnce() + Send + 'static) -> io::Result<Handle> {
    std::thread::Builder::new().name(name.to_owned()).spawn(main)
}
