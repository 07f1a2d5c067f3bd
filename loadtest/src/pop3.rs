//! A POP3 client that takes mail as fast as a server gives it: for comparing servers on the same maildrops.
//!
//! Each session is a plain thread that sends and waits, so that the client costs as little as it can and the server is what
//! is measured. Sessions log in first; the clock runs only while they all do what was asked, so that logins do not count into
//! the rate (but for `--work login` and `--work check`, which are whole sessions). Nothing is removed unless `--delete` says
//! so.

use clap::{Args, ValueEnum};
use ringmail::rt;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

/// Time for any one reply.
const REPLY_TIME: Duration = Duration::from_secs(120);
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Args, Clone)]
pub struct Options {
    /// Address and port of the server
    server: SocketAddr,
    /// What each session does
    #[arg(long, value_enum, default_value = "retr")]
    work: Work,
    /// Sessions at once; session n logs in as USER followed by n, from 0
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// First part of the users' names
    #[arg(long, default_value = "user")]
    user: String,
    /// Password of all users
    #[arg(long, default_value = "secret")]
    password: String,
    /// How often each session does its work
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// RETR commands sent before their answers are awaited
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pipeline: u32,
    /// Messages of each maildrop at most
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    messages: usize,
    /// Delete every message that was retrieved
    #[arg(long)]
    delete: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Debug)]
enum Work {
    /// RETR of every message
    Retr,
    /// LIST and UIDL of the maildrop
    List,
    /// Connect, log in, STAT and QUIT
    Login,
    /// Connect, log in, STAT, LIST, UIDL and QUIT: what a client does that finds nothing new
    Check,
}

#[derive(Serialize, Default)]
struct Report {
    /// Messages retrieved, or sessions or listings done.
    done: u64,
    /// Octets of multi-line replies, as they travel.
    octets: u64,
    failures: u64,
    seconds: f64,
    per_second: f64,
    megabytes_per_second: f64,
}

/// What one session did, and when.
struct Share {
    done: u64,
    octets: u64,
    began: Instant,
    ended: Instant,
}

pub fn run(options: Options) -> io::Result<bool> {
    let sessions = options.sessions;
    let barrier = Arc::new(Barrier::new(sessions));
    let shares: Arc<Mutex<Vec<io::Result<Share>>>> = Arc::default();
    let mut threads = Vec::new();
    for number in 0..sessions {
        let (options, barrier, shares) = (options.clone(), barrier.clone(), shares.clone());
        threads.push(rt::thread("pop3", move || {
            let share = perform(&options, number, &barrier);
            shares.lock().expect("no thread panics with it").push(share);
        })?);
    }
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a session failed inside"))?;
    }
    let mut report = Report::default();
    let (mut began, mut ended) = (None::<Instant>, None::<Instant>);
    for share in shares.lock().expect("no thread panics with it").drain(..) {
        match share {
            Ok(share) => {
                report.done += share.done;
                report.octets += share.octets;
                began = began.min(Some(share.began)).or(Some(share.began));
                ended = ended.max(Some(share.ended));
            }
            Err(error) => {
                eprintln!("ringmail-load: {error}");
                report.failures += 1;
            }
        }
    }
    if let (Some(began), Some(ended)) = (began, ended) {
        report.seconds = (ended - began).as_secs_f64();
        report.per_second = report.done as f64 / report.seconds;
        report.megabytes_per_second = report.octets as f64 / 1e6 / report.seconds;
    }
    println!("{}", serde_json::to_string(&report).map_err(io::Error::other)?);
    Ok(report.failures == 0)
}

fn perform(options: &Options, number: usize, barrier: &Barrier) -> io::Result<Share> {
    let in_session = matches!(options.work, Work::Retr | Work::List);
    let mut session = if in_session { Some(Session::open(options, number)) } else { None };
    // Also a session that failed comes here, or the others would wait for ever.
    barrier.wait();
    let mut share = Share { done: 0, octets: 0, began: rt::now(), ended: rt::now() };
    for _ in 0..options.repeat {
        match (&mut session, options.work) {
            (Some(session), Work::List) => session.as_mut().map_err(take_error)?.list(&mut share)?,
            (Some(session), _) => session.as_mut().map_err(take_error)?.retrieve(options, &mut share)?,
            (None, work) => {
                let mut session = Session::open(options, number)?;
                if work == Work::Check {
                    session.list(&mut share)?;
                } else {
                    share.done += 1;
                }
                session.quit()?;
            }
        }
    }
    share.ended = rt::now();
    if let Some(session) = session {
        session?.quit()?;
    }
    Ok(share)
}

fn take_error(error: &mut io::Error) -> io::Error {
    std::mem::replace(error, io::ErrorKind::Other.into())
}

struct Session {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// `buffer[start..end]` was read and not looked at.
    start: usize,
    end: usize,
    /// Messages of the maildrop.
    count: usize,
}

impl Session {
    fn open(options: &Options, number: usize) -> io::Result<Session> {
        let stream = TcpStream::connect_timeout(&options.server, REPLY_TIME)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIME))?;
        let mut session = Session { stream, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, count: 0 };
        session.ok()?;
        session.ask(&format!("USER {}{number}\r\n", options.user))?;
        session.ask(&format!("PASS {}\r\n", options.password))?;
        let stat = session.ask("STAT\r\n")?;
        let count = stat.split(' ').nth(1).and_then(|count| count.parse().ok());
        session.count = count.ok_or_else(|| io::Error::other(format!("no answer to STAT: {stat}")))?;
        Ok(session)
    }

    /// Reads more; what waits moves to the front.
    fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self.stream.read(&mut self.buffer[self.end..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            let waiting = &self.buffer[self.start..self.end];
            if let Some(at) = memchr::memchr(b'\n', waiting) {
                let line = String::from_utf8_lossy(&waiting[..at]).trim_end().to_owned();
                self.start += at + 1;
                return Ok(line);
            }
            self.fill()?;
        }
    }

    fn ok(&mut self) -> io::Result<String> {
        let line = self.line()?;
        if line.starts_with("+OK") { Ok(line) } else { Err(io::Error::other(format!("the server says {line}"))) }
    }

    fn ask(&mut self, text: &str) -> io::Result<String> {
        self.stream.write_all(text.as_bytes())?;
        self.ok()
    }

    /// A reply of many lines; its octets.
    fn lines(&mut self) -> io::Result<u64> {
        self.ok()?;
        let mut octets = 0;
        loop {
            let waiting = &self.buffer[self.start..self.end];
            if octets == 0 && waiting.starts_with(b".\r\n") {
                self.start += 3;
                return Ok(0);
            }
            if let Some(at) = memchr::memmem::find(waiting, b"\r\n.\r\n") {
                self.start += at + 5;
                return Ok(octets + at as u64 + 2);
            }
            // The last four octets may be the beginning of the end.
            let sure = waiting.len().saturating_sub(4);
            octets += sure as u64;
            self.start += sure;
            self.fill()?;
        }
    }

    fn quit(mut self) -> io::Result<()> {
        self.ask("QUIT\r\n")?;
        // The maildrop is free when the server has closed.
        while self.stream.read(&mut self.buffer)? > 0 {}
        Ok(())
    }

    fn list(&mut self, share: &mut Share) -> io::Result<()> {
        for command in ["LIST\r\n", "UIDL\r\n"] {
            self.stream.write_all(command.as_bytes())?;
            share.octets += self.lines()?;
        }
        share.done += 1;
        Ok(())
    }

    fn retrieve(&mut self, options: &Options, share: &mut Share) -> io::Result<()> {
        let count = self.count.min(options.messages);
        let mut next = 1;
        while next <= count {
            let end = (next + options.pipeline as usize - 1).min(count);
            let all = |verb: &str| (next..=end).map(|number| format!("{verb} {number}\r\n")).collect::<String>();
            self.stream.write_all(all("RETR").as_bytes())?;
            for _ in next..=end {
                share.octets += self.lines()?;
                share.done += 1;
            }
            if options.delete {
                self.stream.write_all(all("DELE").as_bytes())?;
                for _ in next..=end {
                    self.ok()?;
                }
            }
            next = end + 1;
        }
        Ok(())
    }
}
