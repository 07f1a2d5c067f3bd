//! The grammar of the command line and its help.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A mail relay: accepts mail by SMTP, stores it durably, delivers it to MX hosts or local mailboxes, serves mailboxes
/// over POP3.
#[derive(Parser, Debug)]
#[command(
    name = "ringmail",
    version,
    after_help = "Examples:\n  \
        ringmail                       run with /etc/ringmail/ringmail.toml, or without it on the embedded default\n  \
        ringmail user add joe          make a mailbox and login\n  \
        ringmail queue list            see what waits and why\n\n\
        Exit codes are those of sysexits.h: 64 usage, 69 server not running, 77 not allowed, 78 configuration."
)]
pub(super) struct Arguments {
    /// Read this configuration file instead of /etc/ringmail/ringmail.toml
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Run the server in the foreground until SIGTERM or SIGINT (this is also what happens without a command)
    Run,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// See and change what waits for delivery; asks the running server
    #[command(subcommand)]
    Queue(QueueCommand),
    /// See the far sides; stop sending to one, or go on
    #[command(subcommand)]
    Site(SiteCommand),
    /// Say what would happen to a message for an address now: route, site, limits, TLS, and why it would wait
    #[command(after_help = "Example: ringmail explain someone@example.com")]
    Explain(ExplainArguments),
    /// Look at the spool folder itself, whether a server uses it or not
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Kill a server under load again and again, on the disk of your choice, and count what is lost
    ///
    /// Runs a server of its own in FOLDER/ringmail-crashtest, on ports of its own on loopback; a running ringmail is not
    /// touched.
    #[command(
        after_help = "Exit codes: 0 nothing was lost, 65 something was, 69 the server does not start or ended by itself,\n\
        73 the folder cannot be made.\n\nExample: ringmail crashtest /var/lib/ringmail --rounds 100"
    )]
    Crashtest(CrashtestArguments),
    /// Manage mailboxes and logins
    #[command(subcommand)]
    User(UserCommand),
    /// Let the running server take its changed configuration and certificates, whole or not at all
    Reload(FormArguments),
    /// Print name and version
    Version,
}

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Read the configuration and say what is wrong with it; ends with 78 if anything is
    Check,
    /// Print the configuration that is in force, every key with its value (passwords are hidden)
    Show,
}

#[derive(Subcommand, Debug)]
pub(super) enum QueueCommand {
    /// List queued messages, oldest first
    List(ListArguments),
    /// Show one message: each recipient that waits, why, and until when
    #[command(after_help = "Example: ringmail queue show 0000000G0001")]
    Show(ShowArguments),
    /// Count messages and recipients, by site and state
    Summary(FormArguments),
    /// Try now what waits, whatever its time: everything, or what is named
    Flush(OrderArguments),
    /// Let recipients wait until they are released; nothing expires meanwhile
    #[command(
        after_help = "Examples:\n  ringmail queue hold 0000000G0001\n  ringmail queue hold --sender '@shop.example'"
    )]
    Hold(OrderArguments),
    /// Let held recipients go on, at once
    Release(OrderArguments),
    /// Remove recipients from the queue; nobody is told
    #[command(after_help = "Example: ringmail queue delete --recipient user@typo.example")]
    Delete(OrderArguments),
    /// Return recipients to their senders now, as undeliverable
    #[command(after_help = "Example: ringmail queue bounce --domain dead.example --reason 'this domain is gone'")]
    Bounce(BounceArguments),
}

#[derive(Args, Debug, Default)]
pub(super) struct FilterArguments {
    /// Messages of this sender: an address, `@DOMAIN` for all of a domain, or `<>` for reports
    #[arg(long, value_name = "ADDRESS")]
    pub sender: Option<String>,
    /// This recipient: an address, or `@DOMAIN`
    #[arg(long, value_name = "ADDRESS")]
    pub recipient: Option<String>,
    /// Recipients of this domain
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Recipients that wait for this site, as `site list` names it
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
}

impl FilterArguments {
    pub(super) fn is_empty(&self) -> bool {
        [&self.sender, &self.recipient, &self.domain, &self.site].iter().all(|part| part.is_none())
    }
}

#[derive(Args, Debug)]
pub(super) struct OrderArguments {
    /// Queue IDs, as the log and `queue list` show them
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    #[command(flatten)]
    pub filter: FilterArguments,
    /// The whole queue
    #[arg(long, conflicts_with_all = ["ids", "sender", "recipient", "domain", "site"])]
    pub all: bool,
    /// Print JSON: one object for each order
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(super) struct BounceArguments {
    #[command(flatten)]
    pub order: OrderArguments,
    /// Text for the report to the sender
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(super) enum SiteCommand {
    /// List the far sides that have something to do or to remember
    List(FormArguments),
    /// Start no delivery to a site any more, until it is resumed; kept across restarts
    #[command(after_help = "Examples:\n  ringmail site suspend mx:mx.example.com\n  ringmail site suspend example.com")]
    Suspend(SiteArguments),
    /// Go on with a suspended site
    Resume(SiteArguments),
}

#[derive(Args, Debug)]
pub(super) struct SiteArguments {
    /// A name of `site list`, or a domain that has mail in the queue
    #[arg(value_name = "SITE")]
    pub site: String,
    /// Print JSON: one object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(super) struct ExplainArguments {
    /// Recipient
    #[arg(value_name = "ADDRESS")]
    pub address: String,
    /// Sender, where that decides what a message leaves by
    #[arg(long, value_name = "ADDRESS")]
    pub sender: Option<String>,
    /// Print JSON: one object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(super) struct FormArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(super) struct CrashtestArguments {
    /// A folder on the disk to be tested
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Times that the server is killed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rounds: u32,
    /// Connections that submit at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = bounded::<1, 1_000>)]
    pub senders: usize,
    /// Octets of the longest message
    #[arg(long, value_name = "OCTETS", default_value_t = 16_384, value_parser = bounded::<64, 20_000_000>)]
    pub size: usize,
    /// Lets the same kills happen at the same moments
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Test durability = "relaxed"
    #[arg(long)]
    pub relaxed: bool,
    /// Leave spool and log in the folder
    #[arg(long)]
    pub keep: bool,
    /// Print JSON, at the end
    #[arg(long)]
    pub json: bool,
}

fn bounded<const LEAST: usize, const MOST: usize>(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (LEAST..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("{LEAST} to {MOST}")),
    }
}

#[derive(Args, Debug)]
pub(super) struct ListArguments {
    /// Print JSON: a list of objects
    #[arg(long)]
    pub json: bool,
    /// Messages at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    #[command(flatten)]
    pub filter: FilterArguments,
}

#[derive(Args, Debug)]
pub(super) struct ShowArguments {
    /// Queue ID, as the log and `queue list` show it
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print JSON: one object
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub(super) enum SpoolCommand {
    /// Read everything and say what is damaged; changes nothing, and may run beside the server
    #[command(after_help = "Exit codes: 0 sound, 65 damaged, 66 there is no spool.")]
    Check(FormArguments),
    /// Print one message as it will be delivered, or its envelope; may run beside the server
    #[command(after_help = "Examples:\n  ringmail spool cat 0000000G0080 > message.eml\n  \
        ringmail spool cat --envelope 0000000G0080")]
    Cat(CatArguments),
    /// Copy what cannot be read to DATA/spool/quarantine; removes and changes nothing. The server must be stopped
    #[command(
        after_help = "Exit codes: 0 nothing was damaged, 65 something was (see what is printed), 66 there is no spool,\n\
        75 the server runs."
    )]
    Repair(FormArguments),
}

#[derive(Args, Debug)]
pub(super) struct CatArguments {
    /// Queue ID, as the log and `queue list` show it
    #[arg(value_name = "QUEUE-ID")]
    pub id: String,
    /// Print the envelope instead of the message
    #[arg(long)]
    pub envelope: bool,
}

#[derive(Subcommand, Debug)]
pub(super) enum UserCommand {
    /// Add a user: a login for SMTP and POP3, and a mailbox NAME@ every local domain
    #[command(
        after_help = "Examples:\n  ringmail user add joe\n  echo 'the password' | ringmail user add joe --password-stdin\n  \
        ringmail user add joe --hash '$6$salt$...' --quota 2GiB\n\n\
        A running server takes the new user over at once."
    )]
    Add(AddArguments),
    /// Give a user another password; every login from now on needs it
    Passwd(PasswordArguments),
    /// Change quota and retention of a user
    #[command(after_help = "Example: ringmail user set joe --quota 2GiB --messages none --retention 90d")]
    Set(SetArguments),
    /// List users with their quota, retention and ways to log in
    List(FormArguments),
    /// Remove a user: logins and new mail are refused; the mailbox stays where it is
    Remove(NameArgument),
}

#[derive(Args, Debug)]
pub(super) struct AddArguments {
    #[command(flatten)]
    pub password: PasswordArguments,
    /// Take this hash over instead of a password: argon2id, sha512-crypt ($6$) or bcrypt ($2b$). Such a user has no SCRAM
    #[arg(long, value_name = "HASH", conflicts_with_all = ["password_stdin", "apop"])]
    pub hash: Option<String>,
    #[command(flatten)]
    pub mailbox: MailboxArguments,
}

#[derive(Args, Debug)]
pub(super) struct PasswordArguments {
    /// Letters, digits, '.', '_' and '-'; it begins with a letter or digit
    pub name: String,
    /// Read the password from standard input (its first line) instead of asking
    #[arg(long)]
    pub password_stdin: bool,
    /// Also allow APOP, which needs the password stored in the clear
    #[arg(long)]
    pub apop: bool,
}

#[derive(Args, Debug)]
pub(super) struct SetArguments {
    /// The user
    pub name: String,
    #[command(flatten)]
    pub mailbox: MailboxArguments,
}

#[derive(Args, Debug)]
pub(super) struct MailboxArguments {
    /// Octets that the mailbox may hold, like 2GiB; `none` for any amount, `default` for that of the configuration
    #[arg(long, value_name = "SIZE")]
    pub quota: Option<String>,
    /// Messages that the mailbox may hold; `none` for any number, `default` for that of the configuration
    #[arg(long, value_name = "N")]
    pub messages: Option<String>,
    /// How long messages stay: `keep`, `retrieved` (until they were fetched), days like `30d`, or `default`
    #[arg(long, value_name = "TIME")]
    pub retention: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct NameArgument {
    /// The user
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn without_a_command_the_server_runs() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        assert!(parse("ringmail").unwrap().command.is_none());
        let arguments = parse("ringmail queue list --limit 5 --config x.toml").unwrap();
        assert_eq!(arguments.config, Some("x.toml".into()));
        assert!(matches!(
            arguments.command,
            Some(Command::Queue(QueueCommand::List(ListArguments { limit: 5, json: false, .. })))
        ));
        assert_eq!(parse("ringmail fly").unwrap_err().kind(), ErrorKind::InvalidSubcommand);
        assert_eq!(parse("ringmail queue list --limit 0").unwrap_err().kind(), ErrorKind::ValueValidation);
    }
}
