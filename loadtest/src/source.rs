//! The source: a closed loop of sessions, each sending its share of numbered messages.

use crate::wire::{NUMBER_FIELD, Wire};
use hdrhistogram::Histogram;
use ringmail::rt;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// What to send.
#[derive(clap::Args)]
pub struct Options {
    /// Relay to send to.
    #[arg(default_value = "127.0.0.1:2525")]
    relay: SocketAddr,
    /// Sessions at once.
    #[arg(long, short, default_value_t = 50)]
    sessions: usize,
    /// Messages in all.
    #[arg(long, short, default_value_t = 20_000)]
    messages: u64,
    /// Octets of one message.
    #[arg(long, short = 'l', default_value_t = 4096)]
    length: usize,
    /// Messages over one connection; 0 sends all over one.
    #[arg(long, default_value_t = 0)]
    per_connection: u64,
    /// Reverse-path.
    #[arg(long, default_value = "load@source.example")]
    from: String,
    /// Forward-path.
    #[arg(long, default_value = "load@sink.example")]
    to: String,
}

struct Shared {
    options: Options,
    next: Cell<u64>,
    accepted: Cell<u64>,
    refused: Cell<u64>,
    failed: Cell<u64>,
    to_reply_us: RefCell<Histogram<u64>>,
}

/// Time for any one reply.
const REPLY_TIME: Duration = Duration::from_secs(120);

/// Sends; true when every message was accepted.
pub fn run(options: Options) -> io::Result<bool> {
    rt::run_to_end("source", || async move {
        let histogram = Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are in order");
        let shared = Rc::new(Shared {
            options,
            next: Cell::new(0),
            accepted: Cell::new(0),
            refused: Cell::new(0),
            failed: Cell::new(0),
            to_reply_us: RefCell::new(histogram),
        });
        let started = rt::now();
        let group = rt::TaskGroup::default();
        for _ in 0..shared.options.sessions {
            let shared = shared.clone();
            group.spawn(async move { session(&shared).await });
        }
        group.all_ended().await;
        report(&shared, started.elapsed());
        shared.accepted.get() == shared.options.messages
    })
}

fn report(shared: &Shared, elapsed: Duration) {
    let histogram = shared.to_reply_us.borrow();
    let seconds = elapsed.as_secs_f64();
    let summary = serde_json::json!({
        "accepted": shared.accepted.get(),
        "refused": shared.refused.get(),
        "connections_failed": shared.failed.get(),
        "seconds": seconds,
        "accepted_per_second": shared.accepted.get() as f64 / seconds,
        "dot_to_reply_ms": {
            "p50": histogram.value_at_quantile(0.5) as f64 / 1000.0,
            "p99": histogram.value_at_quantile(0.99) as f64 / 1000.0,
            "p999": histogram.value_at_quantile(0.999) as f64 / 1000.0,
            "max": histogram.max() as f64 / 1000.0,
        },
    });
    println!("{summary}");
}

async fn session(shared: &Shared) {
    let mut failures = 0;
    // A relay that refuses connections over and over ends the session, not the machine.
    while shared.next.get() < shared.options.messages && failures < 10 {
        if let Err(error) = connection(shared).await {
            failures += 1;
            shared.failed.set(shared.failed.get() + 1);
            if failures == 10 {
                eprintln!("a session gives up: {error}");
            }
            rt::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn connection(shared: &Shared) -> io::Result<()> {
    let stream = rt::TcpStream::connect(shared.options.relay, None, rt::now() + REPLY_TIME).await?;
    let mut wire = Wire::new(stream.into());
    expect(&mut wire, 220).await?;
    wire.stream.write_all(b"EHLO source.example\r\n").await?;
    expect(&mut wire, 250).await?;
    let limit = if shared.options.per_connection == 0 { u64::MAX } else { shared.options.per_connection };
    for _ in 0..limit {
        let number = shared.next.get();
        if number >= shared.options.messages {
            break;
        }
        shared.next.set(number + 1);
        wire.stream.set_deadline(rt::now() + REPLY_TIME);
        transaction(shared, &mut wire, number).await?;
    }
    wire.stream.write_all(b"QUIT\r\n").await?;
    wire.reply().await.map(|_| ())
}

async fn transaction(shared: &Shared, wire: &mut Wire, number: u64) -> io::Result<()> {
    let Options { from, to, length, .. } = &shared.options;
    wire.stream.write_all(format!("MAIL FROM:<{from}>\r\nRCPT TO:<{to}>\r\nDATA\r\n").as_bytes()).await?;
    let replies = [wire.reply().await?, wire.reply().await?, wire.reply().await?];
    if replies != [250, 250, 354] {
        shared.refused.set(shared.refused.get() + 1);
        if replies[2] != 354 {
            wire.stream.write_all(b"RSET\r\n").await?;
            return wire.reply().await.map(|_| ());
        }
    }
    wire.stream.write_all(&message(from, to, number, *length)).await?;
    let sent = rt::now();
    let code = wire.reply().await?;
    shared.to_reply_us.borrow_mut().saturating_record(sent.elapsed().as_micros() as u64);
    let counter = if code == 250 { &shared.accepted } else { &shared.refused };
    counter.set(counter.get() + 1);
    Ok(())
}

async fn expect(wire: &mut Wire, code: u16) -> io::Result<()> {
    match wire.reply().await? {
        seen if seen == code => Ok(()),
        seen => Err(io::Error::other(format!("reply {seen} where {code} was expected"))),
    }
}

/// A message of about `length` octets with its end-of-data.
fn message(from: &str, to: &str, number: u64, length: usize) -> Vec<u8> {
    let mut text =
        format!("From: <{from}>\r\nTo: <{to}>\r\nSubject: load\r\n{NUMBER_FIELD}{number}\r\n\r\n").into_bytes();
    const LINE: &[u8] = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n";
    while text.len() < length {
        let left = length - text.len();
        if left >= LINE.len() + 2 {
            text.extend_from_slice(LINE);
        } else {
            text.extend(std::iter::repeat_n(b'x', left.saturating_sub(2)));
            text.extend_from_slice(b"\r\n");
        }
    }
    text.extend_from_slice(b".\r\n");
    text
}
