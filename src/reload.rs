//! A changed configuration is taken by the running process, whole or not at all: on SIGHUP and for `ringmail reload`.
//!
//! Everything that can fail is done first: reading, checking, reading certificates. Then the new values are handed to
//! the shards and the POP3 listeners. Sessions that are open go on with what they began with.

use crate::bus::{ToScheduler, ToShard};
use crate::config::{self, Config};
use crate::mailbox::DirectoryHandle;
use crate::receive::Doorman;
use crate::rt;
use crate::telemetry::{Event, EventLog, notify};
use crate::tls::{ServerTls, SharedAcceptor, TlsAcceptor, TlsFilesError};
use crossbeam::channel::Sender;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a reload waits at most for the shards to take it.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// What listeners go on with. Dropped by each shard when it has taken it.
pub struct Reloaded {
    /// The configuration.
    pub config: Arc<Config>,
    /// For the SMTP listeners, in the order of the configuration.
    pub acceptors: Vec<Option<TlsAcceptor>>,
    /// Nothing is ever sent: that it is gone tells that the last shard has taken the rest.
    pub taken: Sender<Infallible>,
}

impl fmt::Debug for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reloaded({} listeners)", self.acceptors.len())
    }
}

/// What the listeners need for TLS, in the order of the configuration.
pub struct Acceptors {
    /// SMTP.
    pub smtp: Vec<Option<TlsAcceptor>>,
    /// POP3.
    pub pop3: Vec<Option<TlsAcceptor>>,
}

impl Acceptors {
    /// Reads the certificates of all listeners.
    ///
    /// # Errors
    /// As [`ServerTls::acceptor`].
    pub fn load(config: &Config, server: &ServerTls) -> Result<Acceptors, TlsFilesError> {
        let of = |tls| server.acceptor(tls, config.tls.as_ref());
        Ok(Acceptors {
            smtp: config.smtp_listeners.iter().map(|listener| of(&listener.tls)).collect::<Result<_, _>>()?,
            pop3: config.pop3_listeners.iter().map(|listener| of(&listener.tls)).collect::<Result<_, _>>()?,
        })
    }
}

/// Reloads. One for the process; it can be asked from every thread, and blocks: not on executors.
pub struct Reloader {
    /// The file that was named, if any.
    pub file: Option<PathBuf>,
    /// What is in force.
    pub current: Mutex<Arc<Config>>,
    /// Makes acceptors.
    pub server_tls: ServerTls,
    /// Told of retry times, limits of sites, rules about replies, routes, and what mail leaves by.
    pub scheduler: rt::Sender<ToScheduler>,
    /// Whom to tell.
    pub shards: Vec<rt::Sender<ToShard>>,
    /// Those of the POP3 listeners.
    pub pop3: Vec<Option<SharedAcceptor>>,
    /// Counts failed logins.
    pub doorman: Arc<Doorman>,
    /// Users and aliases.
    pub directory: DirectoryHandle,
    /// The event log.
    pub log: EventLog,
}

impl Reloader {
    /// Takes what the files say now: the warnings that `config check` would give, or why everything stays as it was.
    /// Both are in the log as well.
    ///
    /// # Errors
    /// Text for the operator: what is wrong with the new configuration, or what of it needs a restart.
    pub fn reload(&self) -> Result<Vec<String>, String> {
        notify::reloading();
        let taken = self.take();
        match &taken {
            Ok(warnings) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                self.log.log(Event::Reloaded);
            }
            Err(why) => tracing::error!("the configuration was not reloaded, everything stays as it was: {why}"),
        }
        notify::ready("accepting mail");
        taken
    }

    fn take(&self) -> Result<Vec<String>, String> {
        // One at a time, from beginning to end.
        let mut current = self.current.lock();
        let loaded = config::load(self.file.as_deref()).map_err(|error| error.to_string())?;
        let fixed = what_needs_a_restart(&current, &loaded.config);
        if !fixed.is_empty() {
            return Err(format!(
                "{} cannot change while the process runs\n  hint: restart ringmail to take this configuration",
                fixed.join(", ")
            ));
        }
        let acceptors = Acceptors::load(&loaded.config, &self.server_tls).map_err(|error| error.to_string())?;
        // The last that can fail, for it takes what it is given.
        self.directory
            .reconfigure(&loaded.config.mailboxes)
            .map_err(|error| format!("{error}\n  hint: mend the file; its last good content is in use"))?;
        // From here on nothing fails.
        self.doorman.set_login_limits(&loaded.config.login_limits);
        for (shared, acceptor) in self.pop3.iter().zip(acceptors.pop3) {
            if let (Some(shared), Some(acceptor)) = (shared, acceptor) {
                shared.replace(acceptor);
            }
        }
        *current = Arc::new(loaded.config);
        let (taken, all_taken) = crossbeam::channel::bounded(0);
        let reloaded = Arc::new(Reloaded { config: current.clone(), acceptors: acceptors.smtp, taken });
        // A scheduler that is gone has ended the process.
        let _ = self.scheduler.blocking_send(ToScheduler::Configured(current.clone()));
        for shard in &self.shards {
            // A shard that is gone has ended the process.
            let _ = shard.blocking_send(ToShard::Reload(reloaded.clone()));
        }
        drop(reloaded);
        // Whoever asked may count on it: the next session goes by the new configuration. A shard that takes longer is
        // the watchdog's business.
        let _ = all_taken.recv_timeout(TAKEN_WITHIN);
        Ok(loaded.warnings)
    }
}

/// Keys whose change a running process cannot take. Every part of the configuration is named here, so that a new one has
/// to be decided about.
fn what_needs_a_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let addresses = |config: &Config| config.smtp_listeners.iter().map(|smtp| smtp.address).collect::<Vec<_>>();
    // Certificates are read anew; what else POP3 listeners have is theirs for good.
    let pop3 = |config: &Config| {
        let listener = |pop3: &config::Pop3Listener| (pop3.address, pop3.tls.mode, pop3.auth_without_tls);
        config.pop3_listeners.iter().map(listener).collect::<Vec<_>>()
    };
    let paths = |config: &Config| {
        let config::Mailboxes { users_file, aliases_file, mail_dir, .. } = config.mailboxes.clone();
        [users_file, aliases_file, mail_dir]
    };
    // All fields by name, so that a new one has to be decided about.
    let Config {
        hostname,
        data_dir,
        shards,
        smtp_listeners: _,
        pop3_listeners: _,
        pop3_sessions,
        admin,
        mailboxes: _,
        dns,
        spool,
        limits,
        relay: _,
        client_limits: _,
        account_limits: _,
        sender_limits: _,
        login_limits: _,
        dnsbls: _,
        greylist: _,
        retry: _,
        routes: _,
        delivery: _,
        sites: _,
        egress: _,
        egress_pools: _,
        reply_rules: _,
        timeouts: _,
        tls: _,
    } = new;
    let is_moved = old.data_dir != *data_dir;
    let changes = [
        ("hostname", old.hostname != *hostname),
        ("data_dir", is_moved),
        ("shards", old.shards != *shards),
        ("[[smtp]] address", addresses(old) != addresses(new)),
        ("[[pop3]]", pop3(old) != pop3(new)),
        ("[pop3_sessions]", old.pop3_sessions != *pop3_sessions),
        ("[admin]", old.admin != *admin),
        ("[limits] stop_timeout", old.limits.stop_timeout != limits.stop_timeout),
        // They follow data_dir.
        ("[mailboxes] users_file, aliases_file or mail_dir", paths(old) != paths(new) && !is_moved),
        ("[dns]", old.dns != *dns),
        ("[spool]", old.spool != *spool),
    ];
    changes.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ringmail.toml");
        std::fs::write(&file, format!("hostname = \"mx.test\"\n{text}")).unwrap();
        config::load(Some(&file)).unwrap().config
    }

    #[test]
    fn what_is_taken_and_what_needs_a_restart() {
        const SMTP: &str = "[[smtp]]\naddress = \"127.0.0.1:25\"\n";
        let old = config(SMTP);
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(what_needs_a_restart(&old, &config(text)), expected, "{text}");
        };
        check(SMTP, &[]);
        check(
            &format!("{SMTP}profile = \"local\"\ngreet_pause = \"1s\"\n[relay]\nrelay_domains = [\"a.test\"]\n"),
            &[],
        );
        check(&format!("{SMTP}[limits]\nerrors_max = 3\n[client_limits]\nsessions_max = 1\n"), &[]);
        check(&format!("{SMTP}[[dnsbl]]\nzone = \"a.test\"\n[greylist]\ndelay = \"1s\"\n"), &[]);
        check("[[smtp]]\naddress = \"127.0.0.1:26\"\n", &["[[smtp]] address"]);
        check(
            &format!("shards = 77\ndata_dir = \"x\"\n{SMTP}[limits]\nstop_timeout = \"1s\"\n"),
            &["data_dir", "shards", "[limits] stop_timeout"],
        );
        check(&format!("{SMTP}[retry]\ndelay_min = \"1s\"\n[[site]]\nmx = [\".a.test\"]\n"), &[]);
        check(&format!("{SMTP}[[route]]\ndomain = \"a.test\"\nhost = \"192.0.2.1\"\n"), &[]);
        check(&format!("{SMTP}[mailboxes]\nlocal_domains = [\"a.test\"]\nquota = 7\n"), &[]);
        check(&format!("{SMTP}[delivery]\nconnections_max = 3\n[timeouts]\ngreeting = \"7s\"\n"), &[]);
        check(
            &format!(
                "{SMTP}[delivery]\negress_pool = \"p\"\n[[egress]]\nname = \"a\"\n\
                 [[egress_pool]]\nname = \"p\"\nmembers = [\"a\"]\n"
            ),
            &[],
        );
        check(
            &format!(
                "{SMTP}[dns]\ntimeout = \"1s\"\n[mailboxes]\nquota = 7\nmail_dir = \"x\"\n[spool]\nsegment_size = \"1 MiB\"\n\
                 [pop3_sessions]\nauto_logout = \"1s\"\n"
            ),
            &["[pop3_sessions]", "[mailboxes] users_file, aliases_file or mail_dir", "[dns]", "[spool]"],
        );
    }
}
