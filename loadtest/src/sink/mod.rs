//! The sink: many addresses as many hosts, each site with a behaviour of its own, every message counted.

pub mod behaviour;
mod session;
pub mod sites;
mod tally;

use crate::wire::Wire;
use behaviour::{Behaviour, Counts, Site};
use ringmail::config::{CertificateFiles, ListenerTls, TlsFiles, TlsMode};
use ringmail::rt;
use ringmail::tls::{ServerTls, TlsAcceptor};
use sites::SiteConfig;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tally::Tally;

/// What to take.
#[derive(clap::Args)]
pub struct Options {
    /// Addresses to listen on, all of one site (default 127.0.0.1:2626 where there is no --config).
    listen: Vec<SocketAddr>,
    /// Sites with addresses and behaviours of their own (`sink.toml` of `ringmail-load world`).
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// End when so many different messages came (counted for each recipient).
    #[arg(long, short)]
    messages: Option<u64>,
    /// End when nothing came for so many seconds (counted from the start, too).
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Check the checksum that a source gives each message.
    #[arg(long)]
    verify: bool,
    /// Certificate (PEM) for --tls.
    #[arg(long, requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    behaviour: Behaviour,
}

struct Shared {
    sites: Vec<RefCell<Site>>,
    tally: RefCell<Tally>,
    acceptor: Option<TlsAcceptor>,
    verify: bool,
    started: Instant,
}

impl Shared {
    /// Since the start.
    fn seconds(&self) -> f64 {
        rt::now().saturating_duration_since(self.started).as_secs_f64()
    }
}

/// Takes messages until the expected ones came, nothing comes any more, or a signal; true when all came, none twice
/// and none damaged.
///
/// # Errors
/// A configuration, certificate or address that cannot be used.
pub fn run(options: Options) -> io::Result<bool> {
    let sites = all_sites(&options)?;
    let acceptor = match (&options.tls_certificate, &options.tls_key) {
        (Some(certificate), Some(key)) => {
            let default = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
            let files = TlsFiles { default, sni: Vec::new() };
            let listener = ListenerTls { mode: TlsMode::Starttls, ..ListenerTls::default() };
            ServerTls::default().acceptor(&listener, Some(&files)).map_err(io::Error::other)?
        }
        _ => None,
    };
    if acceptor.is_none() && sites.iter().any(|site| site.behaviour.tls) {
        return Err(io::Error::other("a site offers TLS: give --tls-certificate and --tls-key"));
    }
    let interrupted = crate::interrupt::watch()?;
    rt::run_to_end("sink", || async move {
        let state =
            |(number, site): (usize, &SiteConfig)| RefCell::new(Site::new(site.behaviour.clone(), number as u64));
        let shared = Rc::new(Shared {
            sites: sites.iter().enumerate().map(state).collect(),
            tally: RefCell::default(),
            acceptor,
            verify: options.verify,
            started: rt::now(),
        });
        for (index, site) in sites.iter().enumerate() {
            for address in &site.addresses {
                listen(*address, index, shared.clone())?;
            }
        }
        // For whoever started it and waits for this.
        eprintln!(
            "ringmail-load: listening on {} addresses",
            sites.iter().map(|site| site.addresses.len()).sum::<usize>()
        );
        wait(&shared, &options, &interrupted).await;
        Ok(report(&shared, &sites, options.messages))
    })?
}

fn all_sites(options: &Options) -> io::Result<Vec<SiteConfig>> {
    let mut sites = match &options.config {
        Some(path) => sites::read(path)?,
        None => Vec::new(),
    };
    options.behaviour.check().map_err(io::Error::other)?;
    let mut addresses = options.listen.clone();
    if addresses.is_empty() && sites.is_empty() {
        addresses.push(SocketAddr::from(([127, 0, 0, 1], 2626)));
    }
    if !addresses.is_empty() {
        sites.push(SiteConfig { name: "default".to_owned(), addresses, behaviour: options.behaviour.clone() });
    }
    Ok(sites)
}

fn listen(address: SocketAddr, site: usize, shared: Rc<Shared>) -> io::Result<()> {
    let listener = rt::TcpListener::bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
    rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let shared = shared.clone();
            // How a client leaves is its own affair.
            rt::spawn(async move { drop(session::serve(&shared, site, Wire::new(stream.into())).await) });
        }
    });
    Ok(())
}

async fn wait(shared: &Shared, options: &Options, interrupted: &crate::interrupt::Interrupted) {
    let idle = Duration::from_secs(options.idle_seconds);
    let mut seen = (0, rt::now());
    loop {
        rt::sleep(Duration::from_millis(50)).await;
        let tally = shared.tally.borrow();
        if tally.last_us() != seen.0 {
            seen = (tally.last_us(), rt::now());
        }
        let all = options.messages.is_some_and(|expected| tally.arrived() >= expected);
        if all || interrupted.is_set() || seen.1.elapsed() > idle {
            break;
        }
    }
    // Late repeats of what came already would arrive right behind it.
    rt::sleep(Duration::from_millis(500)).await;
}

fn report(shared: &Shared, sites: &[SiteConfig], expected: Option<u64>) -> bool {
    let tally = shared.tally.borrow();
    let counts: Vec<Counts> = shared.sites.iter().map(|site| site.borrow().counts.clone()).collect();
    let named: Vec<(&str, &Counts)> = sites.iter().map(|site| site.name.as_str()).zip(&counts).collect();
    println!("{}", tally.summary(expected, &named));
    let complete = expected.is_none_or(|expected| tally.arrived() >= expected);
    complete && tally.repeated() == 0 && tally.damaged() == 0
}
