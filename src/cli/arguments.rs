//! The grammar of the command line and its help.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A mail relay: accepts mail by SMTP, stores it durably, delivers it to MX hosts or local mailboxes, serves mailboxes
/// over POP3.
#[derive(Parser, Debug)]
#[command(
    name = "ringmail",
    version,
    disable_help_subcommand = true,
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
    /// Look at the spool folder itself, whether a server uses it or not
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Manage mailboxes and logins
    #[command(subcommand)]
    User(UserCommand),
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
    /// Try everything that waits now, whatever its time
    Flush,
}

#[derive(Args, Debug)]
pub(super) struct FormArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub(super) struct ListArguments {
    /// Print JSON: a list of objects
    #[arg(long)]
    pub json: bool,
    /// Messages at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
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
        A running server takes the new user over within a second."
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
            Some(Command::Queue(QueueCommand::List(ListArguments { limit: 5, json: false })))
        ));
        assert_eq!(parse("ringmail fly").unwrap_err().kind(), ErrorKind::InvalidSubcommand);
        assert_eq!(parse("ringmail queue list --limit 0").unwrap_err().kind(), ErrorKind::ValueValidation);
    }
}
