//! A simulated Internet on loopback addresses: written to a folder, and its DNS served.

mod dns;
mod model;

use crate::sink::sites::SinkConfig;
use model::{KINDS, Names, Size};
use ringmail::rt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What to do.
#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write a world into a folder: sink.toml, names.json, test.zone, knot.conf, domains.txt, ringmail.toml.
    Write(WriteOptions),
    /// Serve the DNS of a world until a signal comes.
    Serve(ServeOptions),
    /// Print the kinds of sites that are used unless --kinds gives others.
    Kinds,
}

#[derive(clap::Args)]
struct WriteOptions {
    /// The folder; made where it is missing.
    folder: PathBuf,
    /// Domains.
    #[arg(long, default_value_t = 1000)]
    domains: usize,
    /// Sites that take their mail; at most as many as domains.
    #[arg(long, default_value_t = 100)]
    sites: usize,
    /// The same seed makes the same world.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// First address of the hosts, in 127.0.0.0/8 (or a network of your own).
    #[arg(long, default_value_t = Ipv4Addr::new(127, 40, 0, 1))]
    network: Ipv4Addr,
    /// Port of all hosts.
    #[arg(long, default_value_t = 2525)]
    port: u16,
    /// Address of the DNS server, for the configurations that are written.
    #[arg(long, default_value = "127.0.0.1:5353")]
    dns: SocketAddr,
    /// Exponent of Zipf's law by which domains belong to sites; 0 spreads them evenly.
    #[arg(long, default_value_t = 1.0)]
    zipf: f64,
    /// Kinds of sites, in the form of `ringmail-load world kinds`.
    #[arg(long)]
    kinds: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ServeOptions {
    /// The folder.
    folder: PathBuf,
    /// Address of UDP and TCP.
    #[arg(long, default_value = "127.0.0.1:5353")]
    listen: SocketAddr,
    /// Milliseconds before each answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

/// Does it.
///
/// # Errors
/// Numbers that make no world; files and sockets that cannot be used.
pub fn run(options: Options) -> io::Result<bool> {
    match options.command {
        Command::Write(options) => write(&options).map(|()| true),
        Command::Serve(options) => serve(&options).map(|()| true),
        Command::Kinds => {
            print!("{KINDS}");
            Ok(true)
        }
    }
}

fn write(options: &WriteOptions) -> io::Result<()> {
    let WriteOptions { domains, sites, network, port, zipf, seed, .. } = *options;
    if sites == 0 || sites > domains {
        return Err(io::Error::other("--sites must be from 1 to the number of domains"));
    }
    if !(zipf.is_finite() && zipf >= 0.0) {
        return Err(io::Error::other("--zipf must not be negative"));
    }
    let kinds = match &options.kinds {
        Some(path) => std::fs::read_to_string(path)?,
        None => KINDS.to_owned(),
    };
    let kinds = model::parse_kinds(&kinds).map_err(io::Error::other)?;
    let world = model::make(&Size { domains, sites, network, port, zipf, seed }, &kinds);
    let folder = &options.folder;
    std::fs::create_dir_all(folder)?;
    let sink = toml::to_string(&SinkConfig { site: world.sites }).map_err(io::Error::other)?;
    std::fs::write(folder.join("sink.toml"), sink)?;
    std::fs::write(folder.join("names.json"), serde_json::to_string_pretty(&world.names)?)?;
    std::fs::write(folder.join("test.zone"), model::zone_file(&world.names))?;
    std::fs::write(folder.join("knot.conf"), knot_config(folder, options.dns))?;
    std::fs::write(folder.join("domains.txt"), world.domains.join("\n") + "\n")?;
    std::fs::write(folder.join("ringmail.toml"), ringmail_config(options))?;
    println!("{} domains at {} sites in {}", domains, sites, folder.display());
    Ok(())
}

fn knot_config(folder: &Path, dns: SocketAddr) -> String {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    format!(
        "server:\n    listen: {}@{}\n    rundir: {folder}\ndatabase:\n    storage: {folder}\nzone:\n  - domain: {}\n    \
         storage: {folder}\n    file: test.zone\n",
        dns.ip(),
        dns.port(),
        model::ORIGIN,
        folder = folder.display(),
    )
}

fn ringmail_config(options: &WriteOptions) -> String {
    format!(
        "# A ringmail that relays into this world.\nhostname = \"relay.example\"\n\n[[smtp]]\naddress = \
         \"127.0.0.1:2525\"\n\n[delivery]\nport = {}\nallow_private_targets = true\n\n[retry]\ndelay_min = \"2s\"\ndelay_max = \
         \"8s\"\n\n[dns]\nservers = [\"{}\"]\ntimeout = \"500ms\"\n",
        options.port, options.dns
    )
}

fn serve(options: &ServeOptions) -> io::Result<()> {
    let names: Names = serde_json::from_slice(&std::fs::read(options.folder.join("names.json"))?)?;
    let interrupted = crate::interrupt::watch()?;
    let table = Arc::new(dns::Table::new(names, Duration::from_millis(options.delay_ms)));
    dns::serve(options.listen, table)?;
    // For whoever started it and waits for this.
    eprintln!("ringmail-load: serving DNS on {}", options.listen);
    rt::run_to_end("world", || async move {
        while !interrupted.is_set() {
            rt::sleep(Duration::from_millis(50)).await;
        }
    })
}
