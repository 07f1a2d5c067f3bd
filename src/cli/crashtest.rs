//! `ringmail crashtest`: on the operator's own disk, kills a server under load again and again, and counts what is lost.
//!
//! It runs this very program as a server of its own (own folder, own ports on loopback), submits to it from many senders,
//! ends it with SIGKILL at random moments, also while it starts, and takes everything back at a sink behind it. What was
//! answered 250 and does not arrive is lost; what arrives more often than once is repeated.
//!
//! A killed process leaves the page cache intact: this shows that the order of things is right, not that the disk keeps
//! what it was told to sync. For that the machine's power has to be cut.

mod report;
mod sender;
mod sink;

use super::arguments::CrashtestArguments;
use super::exit::{self, Failure};
use crate::rt;
use crate::schedule::random::Random;
use crate::spool;
use report::{Report, Round};
use sender::{Senders, Sent};
use sink::Sink;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// Sub-folder of the chosen folder, so that nothing that is there can be hit.
const FOLDER: &str = "ringmail-crashtest";
/// A server that does not answer by then will not.
const START_TIME: Duration = Duration::from_secs(60);
/// Without a new message at the sink for so long, what is missing is lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// Shortest and longest life of a server, in milliseconds after it accepts connections.
const LIFE_MS: (u64, u64) = (50, 1_500);

pub(super) fn perform(arguments: &CrashtestArguments) -> Result<ExitCode, Failure> {
    let folder = make_folder(&arguments.folder)?;
    let seed = arguments.seed.unwrap_or_else(rt::unix_ms);
    let mut bench = Bench::new(folder.clone(), arguments, seed)?;
    for number in 1..=arguments.rounds {
        let round = bench.round(number)?;
        if !arguments.json {
            println!("{}", round.line());
        }
        bench.report.rounds.push(round);
    }
    bench.settle()?;
    let report = &bench.report;
    println!("{}", if arguments.json { format!("{:#}", report.as_json()) } else { report.summary() });
    let is_good = report.is_good();
    if is_good && !arguments.keep {
        std::fs::remove_dir_all(&folder)
            .map_err(|error| Failure::io(exit::IO, format!("cannot remove {}", folder.display()), &error))?;
    } else {
        eprintln!("spool and log are left in {}", folder.display());
    }
    Ok(if is_good { ExitCode::SUCCESS } else { exit::DATA.into() })
}

fn make_folder(above: &Path) -> Result<PathBuf, Failure> {
    let folder = above.join(FOLDER);
    match std::fs::create_dir(&folder) {
        Ok(()) => Ok(folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let message = format!("{} is there already", folder.display());
            Err(Failure::new(exit::CANNOT_CREATE, message).hint("it is left by an earlier test; remove it"))
        }
        Err(error) => Err(Failure::io(exit::CANNOT_CREATE, format!("cannot make {}", folder.display()), &error)),
    }
}

/// The server under test, and what is known of its messages.
struct Bench {
    folder: PathBuf,
    config: PathBuf,
    server: SocketAddr,
    sink: Sink,
    sent: Sent,
    senders: usize,
    body_bytes: usize,
    random: Random,
    report: Report,
}

/// A server process; gone with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    fn new(folder: PathBuf, arguments: &CrashtestArguments, seed: u64) -> Result<Bench, Failure> {
        let failed = |error: io::Error| Failure::io(exit::IO, "cannot prepare the test", &error);
        let sink = Sink::start().map_err(failed)?;
        let server = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).map_err(failed)?;
        let config = folder.join("ringmail.toml");
        let text = format!(
            "hostname = \"relay.crashtest.invalid\"\n\
             data_dir = {data:?}\n\
             [[smtp]]\naddress = \"{server}\"\ndurability = \"{durability}\"\n\
             [admin]\nenabled = false\n\
             [spool]\nsegment_size = \"4 MiB\"\ncompact_after = \"1s\"\n\
             [retry]\ndelay_min = \"1s\"\ndelay_max = \"2s\"\n\
             [[route]]\ndomain = \"*\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\n",
            data = folder.join("data").display().to_string(),
            durability = if arguments.relaxed { "relaxed" } else { "group" },
            port = sink.address().port(),
        );
        std::fs::write(&config, text).map_err(failed)?;
        Ok(Bench {
            folder,
            config,
            server,
            sink,
            sent: Sent::default(),
            senders: arguments.senders,
            body_bytes: arguments.size,
            random: Random::new(seed),
            report: Report { seed, senders: arguments.senders, ..Report::default() },
        })
    }

    /// Starts the server, loads it, and kills it at a random moment.
    fn round(&mut self, number: u32) -> Result<Round, Failure> {
        // One in five is killed while it starts and recovers.
        let is_early = self.random.below(5) == 0;
        let mut server = self.start()?;
        let started = rt::now();
        if !is_early {
            self.wait_until_it_accepts(&mut server)?;
        }
        let start_ms = rt::now().duration_since(started).as_millis() as u64;
        let (least, most) = if is_early { (0, 300) } else { LIFE_MS };
        let life_ms = least + self.random.below(most - least);
        let senders = Senders::start(self.server, self.senders, self.body_bytes, &self.sent).map_err(start_failed)?;
        std::thread::sleep(Duration::from_millis(life_ms));
        self.ended_by_itself(&mut server)?;
        drop(server);
        let counts = senders.stop();
        let folder = self.folder.join("data/spool");
        let damaged = match spool::inspect(&folder, &mut |_| {}) {
            Ok(seen) => seen.findings.iter().filter(|finding| finding.verdict.is_damage()).count() as u64,
            // Killed before it had made the folder.
            Err(spool::OpenError::Io(error)) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Failure::new(exit::IO, format!("cannot read {}: {error}", folder.display()))),
        };
        Ok(Round {
            number,
            start_ms,
            life_ms,
            acknowledged: counts.acknowledged,
            unanswered: counts.unanswered,
            damaged,
        })
    }

    /// Lets everything arrive that is still in the spool, and compares.
    fn settle(&mut self) -> Result<(), Failure> {
        let mut server = self.start()?;
        self.wait_until_it_accepts(&mut server)?;
        let mut missing = self.sent.missing(&self.sink);
        let mut moved = rt::now();
        while missing > 0 && rt::now().duration_since(moved) < PATIENCE {
            std::thread::sleep(Duration::from_millis(100));
            self.ended_by_itself(&mut server)?;
            let now = self.sent.missing(&self.sink);
            if now < missing {
                moved = rt::now();
            }
            missing = now;
        }
        self.stop(server)?;
        self.sent.compare(&self.sink, &mut self.report);
        Ok(())
    }

    fn start(&self) -> Result<Server, Failure> {
        let program = std::env::current_exe().map_err(start_failed)?;
        let log = File::options().append(true).create(true).open(self.folder.join("log")).map_err(start_failed)?;
        let errors = log.try_clone().map_err(start_failed)?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.config).arg("run");
        command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map(Server).map_err(start_failed)
    }

    fn wait_until_it_accepts(&self, server: &mut Server) -> Result<(), Failure> {
        let until = rt::now() + START_TIME;
        while TcpStream::connect(self.server).is_err() {
            self.ended_by_itself(server)?;
            if rt::now() > until {
                return Err(Failure::new(exit::UNAVAILABLE, "the server does not answer").hint(self.see_log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn ended_by_itself(&self, server: &mut Server) -> Result<(), Failure> {
        match server.0.try_wait() {
            Ok(Some(status)) => {
                let message = format!("the server ended by itself: {status}");
                Err(Failure::new(exit::UNAVAILABLE, message).hint(self.see_log()))
            }
            _ => Ok(()),
        }
    }

    /// SIGTERM, and its time to end in good order.
    fn stop(&self, mut server: Server) -> Result<(), Failure> {
        let id = rustix::process::Pid::from_child(&server.0);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).map_err(|error| start_failed(error.into()))?;
        let until = rt::now() + START_TIME;
        loop {
            match server.0.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let message = format!("the server did not stop in good order: {status}");
                    return Err(Failure::new(exit::UNAVAILABLE, message).hint(self.see_log()));
                }
                _ if rt::now() > until => {
                    return Err(Failure::new(exit::UNAVAILABLE, "the server does not stop").hint(self.see_log()));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn see_log(&self) -> String {
        format!("see {}", self.folder.join("log").display())
    }
}

fn start_failed(error: io::Error) -> Failure {
    Failure::io(exit::IO, "the test cannot go on", &error)
}
