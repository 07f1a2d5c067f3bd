//! The source: sessions in a closed loop (each sends its next message when the last one is answered) or in an open one
//! (messages are due at a fixed rate, whatever the relay does, and their time counts from when they were due).

mod connection;
mod content;
mod meter;

use crate::choice::{Cumulative, Mix};
use content::{Content, Framing, Material, Recipients};
use meter::Meter;
use ringmail::rt;
use ringmail::tls::ClientTls;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What to send.
#[derive(clap::Args)]
pub struct Options {
    /// Relay to send to.
    #[arg(default_value = "127.0.0.1:2525")]
    relay: SocketAddr,
    /// Sessions at once.
    #[arg(long, short, default_value_t = 50)]
    sessions: usize,
    /// Milliseconds between the beginnings of two sessions: some servers lose connections that come at once.
    #[arg(long, default_value_t = 0)]
    stagger_ms: u64,
    /// Messages in all, those of the warm-up included (default 20,000 where there is no --seconds).
    #[arg(long, short)]
    messages: Option<u64>,
    /// Send for so long, the warm-up not included.
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds at the beginning that are not counted.
    #[arg(long, default_value_t = 0.0)]
    warmup: f64,
    /// Open loop: messages due each second. Without it each session sends as fast as it is answered.
    #[arg(long, short)]
    rate: Option<f64>,
    /// Octets of a message: `4096`, or a mix with weights: `4k:70,64k:25,1m:5`.
    #[arg(long, short = 'l', default_value = "4096")]
    length: Mix,
    /// Send these files (messages, `.eml`), or those in these folders, instead of made ones.
    #[arg(long)]
    eml: Vec<PathBuf>,
    /// Recipients of a message, or a mix; needs --domains.
    #[arg(long, default_value = "1", requires = "domains")]
    recipients: Mix,
    /// Send to invented users of the domains in this file, one a line, the most popular first (`domains.txt` of
    /// `ringmail-load world`).
    #[arg(long)]
    domains: Option<PathBuf>,
    /// Exponent of Zipf's law by which domains are popular; 0 makes all alike.
    #[arg(long, default_value_t = 1.0)]
    zipf: f64,
    /// Forward-path where there is no --domains.
    #[arg(long, default_value = "load@sink.example")]
    to: String,
    /// Reverse-path.
    #[arg(long, default_value = "load@source.example")]
    from: String,
    /// Messages over one connection; 0 sends all over one.
    #[arg(long, default_value_t = 0)]
    per_connection: u64,
    /// Wait for each reply before the next command, also where the relay offers PIPELINING.
    #[arg(long, conflicts_with = "bdat")]
    no_pipelining: bool,
    /// Send with BDAT (RFC 3030) instead of DATA.
    #[arg(long)]
    bdat: bool,
    /// STARTTLS before anything else; the certificate is not checked.
    #[arg(long)]
    tls: bool,
    /// Log in, `USER:PASSWORD`.
    #[arg(long)]
    auth: Option<String>,
    /// Of sizes, recipients and domains.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A line on standard error each second, also where that is no terminal.
    #[arg(long)]
    progress: bool,
}

/// A message to send.
struct Next {
    number: u64,
    /// When it was to be sent.
    due: Instant,
}

struct Shared {
    options: Options,
    content: Content,
    framing: Framing,
    tls: Option<ClientTls>,
    meter: RefCell<Meter>,
    next: Cell<u64>,
    messages_max: u64,
    started: Instant,
    ends: Cell<Option<Instant>>,
    interrupted: crate::interrupt::Interrupted,
}

impl Shared {
    /// Nothing is left to send.
    fn is_over(&self) -> bool {
        let late = self.ends.get().is_some_and(|end| rt::now() >= end);
        self.next.get() >= self.messages_max || late || self.interrupted.is_set()
    }

    /// The next message, when it is due.
    async fn next(&self) -> Option<Next> {
        if self.is_over() {
            return None;
        }
        let number = self.next.get();
        self.next.set(number + 1);
        let Some(rate) = self.options.rate else { return Some(Next { number, due: rt::now() }) };
        let due = self.started + Duration::from_secs_f64(number as f64 / rate);
        if self.ends.get().is_some_and(|end| due >= end) {
            return None;
        }
        rt::sleep_until(due).await;
        Some(Next { number, due })
    }
}

/// Sends; true when every message was accepted.
///
/// # Errors
/// Options that do not fit together, files that cannot be read.
pub fn run(options: Options) -> io::Result<bool> {
    let framing = if options.bdat { Framing::Chunk } else { Framing::Data };
    let run = u32::try_from(crate::stamp::unix_us() & 0xffff_ffff).expect("32 bits") ^ std::process::id();
    let recipients = recipients(&options)?;
    let content = Content::new(&material(&options)?, recipients, &options.from, framing, run, options.seed)?;
    if options.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err(io::Error::other("--rate must be above 0"));
    }
    let tls = match options.tls {
        true => Some(ClientTls::load().map_err(io::Error::other)?),
        false => None,
    };
    let messages_max = options.messages.unwrap_or(if options.seconds.is_some() { u64::MAX } else { 20_000 });
    let interrupted = crate::interrupt::watch()?;
    rt::run_to_end("source", move || async move {
        let warmup = Duration::from_secs_f64(options.warmup.max(0.0));
        let ends = options.seconds.map(|seconds| rt::now() + warmup + Duration::from_secs_f64(seconds.max(0.0)));
        let shared = Rc::new(Shared {
            content,
            framing,
            tls,
            meter: RefCell::default(),
            next: Cell::new(0),
            messages_max,
            started: rt::now(),
            ends: Cell::new(ends),
            interrupted,
            options,
        });
        let group = rt::TaskGroup::default();
        for session in 0..shared.options.sessions {
            let shared = shared.clone();
            group.spawn(async move {
                let begin = shared.started + Duration::from_millis(shared.options.stagger_ms) * session as u32;
                rt::sleep_until(begin).await;
                connection::run(&shared).await;
            });
        }
        let counted_from = watch(&shared, &group, warmup).await;
        report(&shared, counted_from.elapsed())
    })
}

fn material(options: &Options) -> io::Result<Material> {
    if options.eml.is_empty() {
        return Ok(Material::Made(options.length.clone()));
    }
    let mut files = Vec::new();
    for path in &options.eml {
        if path.is_dir() {
            let entries: io::Result<Vec<_>> = std::fs::read_dir(path)?.collect();
            files.extend(entries?.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()));
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    if files.is_empty() { Err(io::Error::other("--eml names no file")) } else { Ok(Material::Files(files)) }
}

fn recipients(options: &Options) -> io::Result<Recipients> {
    let Some(path) = &options.domains else { return Ok(Recipients::Fixed(options.to.clone())) };
    let text = std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(io::Error::other(format!("{} names no domain", path.display())));
    }
    let weights = Cumulative::zipf(names.len(), options.zipf);
    Ok(Recipients::Domains { names, weights, count: options.recipients.clone() })
}

/// Waits for the end, second by second; gives the time from which on was counted.
async fn watch(shared: &Rc<Shared>, group: &rt::TaskGroup, warmup: Duration) -> Instant {
    let mut counted_from = shared.started;
    let mut is_warming = !warmup.is_zero();
    let mut second_ends = shared.started + Duration::from_secs(1);
    let line = shared.options.progress || io::stderr().is_terminal();
    while group.running() > 0 {
        let until = if is_warming { second_ends.min(shared.started + warmup) } else { second_ends };
        let ended = rt::timeout(until, group.all_ended()).await.is_ok();
        if ended {
            break;
        }
        if is_warming && rt::now() >= shared.started + warmup {
            is_warming = false;
            *shared.meter.borrow_mut() = Meter::default();
            counted_from = rt::now();
            second_ends = counted_from + Duration::from_secs(1);
            continue;
        }
        second_ends += Duration::from_secs(1);
        let mut meter = shared.meter.borrow_mut();
        let (accepted, refused) = (meter.accepted, meter.refused);
        let second = meter.tick();
        if line {
            let (rate, p50, p99) = (second.accepted, second.p50_us as f64 / 1000.0, second.p99_us as f64 / 1000.0);
            let note = if is_warming { " (warming up)" } else { "" };
            eprintln!(
                "{rate:>8}/s  {accepted:>10} accepted  {refused} refused  p50 {p50:.1} ms  p99 {p99:.1} ms{note}"
            );
        }
    }
    counted_from
}

/// Prints what was measured; true when all was accepted.
fn report(shared: &Shared, elapsed: Duration) -> bool {
    let meter = shared.meter.borrow();
    let mut summary = meter.summary(elapsed);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let share = (cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9) / shared.started.elapsed().as_secs_f64().max(1e-9);
    let ended_us = crate::stamp::unix_us();
    summary.insert("ended_us".to_owned(), json!(ended_us));
    summary.insert("started_us".to_owned(), json!(ended_us.saturating_sub(elapsed.as_micros() as u64)));
    summary.insert("source_cpu_share".to_owned(), json!(share));
    println!("{}", serde_json::Value::Object(summary));
    if share > 0.9 {
        eprintln!("ringmail-load: the source itself was busy all the time; it may be what limits the rate");
    }
    meter.refused == 0 && meter.lost == 0 && meter.recipients_refused == 0 && meter.accepted > 0 && all_sent(shared)
}

fn all_sent(shared: &Shared) -> bool {
    shared.options.messages.is_none_or(|messages| shared.next.get() >= messages || shared.ends.get().is_some())
}
