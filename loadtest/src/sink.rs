//! The sink: takes every message, counts numbers that came twice.

use crate::wire::{Wire, number};
use ringmail::rt;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What to take.
#[derive(clap::Args)]
pub struct Options {
    /// Addresses to listen on.
    #[arg(default_value = "127.0.0.1:2626")]
    listen: Vec<SocketAddr>,
    /// End when so many different numbers came.
    #[arg(long, short)]
    messages: Option<u64>,
    /// End when nothing came for so many seconds.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
}

struct Shared {
    seen: RefCell<HashMap<u64, u32>>,
    unnumbered: Cell<u64>,
    first: Cell<Option<Instant>>,
    last: Cell<Instant>,
}

/// Takes messages until the expected ones came or nothing comes; true when all came and none twice.
pub fn run(options: Options) -> io::Result<bool> {
    rt::run_to_end("sink", || async move {
        let shared = Rc::new(Shared {
            seen: RefCell::default(),
            unnumbered: Cell::new(0),
            first: Cell::new(None),
            last: Cell::new(rt::now()),
        });
        for address in &options.listen {
            let listener = rt::TcpListener::bind(*address)?;
            let shared = shared.clone();
            rt::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = shared.clone();
                    rt::spawn(async move { drop(session(&shared, Wire::new(stream.into())).await) });
                }
            });
        }
        loop {
            rt::sleep(Duration::from_millis(100)).await;
            let all = options.messages.is_some_and(|expected| shared.seen.borrow().len() as u64 >= expected);
            if all || shared.last.get().elapsed() > Duration::from_secs(options.idle_seconds) {
                break;
            }
        }
        // Late repeats of what came already would arrive right behind it.
        rt::sleep(Duration::from_millis(500)).await;
        Ok(report(&shared, options.messages))
    })?
}

fn report(shared: &Shared, expected: Option<u64>) -> bool {
    let seen = shared.seen.borrow();
    let repeated: u64 = seen.values().map(|count| u64::from(count - 1)).sum();
    let seconds = shared.first.get().map_or(0.0, |first| (shared.last.get() - first).as_secs_f64());
    let different = seen.len() as u64;
    let summary = serde_json::json!({
        "different": different,
        "repeated": repeated,
        "unnumbered": shared.unnumbered.get(),
        "missing": expected.map(|expected| expected.saturating_sub(different)),
        "seconds": seconds,
        "per_second": if seconds > 0.0 { different as f64 / seconds } else { 0.0 },
    });
    println!("{summary}");
    repeated == 0 && expected.is_none_or(|expected| different >= expected)
}

async fn session(shared: &Shared, mut wire: Wire) -> io::Result<()> {
    let mut replies: Vec<u8> = b"220 sink.example ESMTP\r\n".to_vec();
    loop {
        if wire.is_drained() && !replies.is_empty() {
            wire.stream.write_all(&replies).await?;
            replies.clear();
        }
        let Some(line) = wire.line().await? else { return Ok(()) };
        let verb = line.get(..4).unwrap_or(b"").to_ascii_uppercase();
        match &verb[..] {
            b"EHLO" => {
                replies.extend_from_slice(b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n")
            }
            b"DATA" => {
                replies.extend_from_slice(b"354 go ahead\r\n");
                wire.stream.write_all(&replies).await?;
                replies.clear();
                let message = wire.data().await?;
                note(shared, &message);
                replies.extend_from_slice(b"250 2.0.0 taken\r\n");
            }
            b"QUIT" => {
                replies.extend_from_slice(b"221 2.0.0 bye\r\n");
                return wire.stream.write_all(&replies).await;
            }
            _ => replies.extend_from_slice(b"250 2.0.0 ok\r\n"),
        }
    }
}

fn note(shared: &Shared, message: &[u8]) {
    let now = rt::now();
    shared.first.set(shared.first.get().or(Some(now)));
    shared.last.set(now);
    match number(message) {
        Some(number) => *shared.seen.borrow_mut().entry(number).or_default() += 1,
        None => shared.unnumbered.set(shared.unnumbered.get() + 1),
    }
}
