//! `[limits]`: bounds of inbound sessions (RFC 5321 section 4.5.3).

use super::check::{MIB, day, in_range, in_range_by, plain, second, seconds};
use super::error::Problem;
use super::units::{ByteSize, Period};
use crate::smtp::data::HEADER_BYTES_SMALL;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// Bounds of inbound sessions (RFC 5321 section 4.5.3).
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// SIZE: octets of one message; default 50 MiB.
    pub message_bytes_max: u64,
    /// Octets of a message's header section; default 1 MiB.
    pub header_bytes_max: u64,
    /// Recipients of one transaction; default 1,000.
    pub recipients_max: usize,
    /// Transactions of one session; 0, the default, is no limit.
    pub messages_max: usize,
    /// `Received:` fields before a message is taken for looping; default 50.
    pub hops_max: usize,
    /// Time to wait for the next command; default 5 min.
    pub command_timeout: Duration,
    /// Time to wait for the next octets of data; default 3 min.
    pub data_timeout: Duration,
    /// Time without an accepted message after which a session ends; default 1 h.
    pub session_timeout: Duration,
    /// Commands of one session without an accepted message between them; default 100,000.
    pub commands_max: usize,
    /// Commands refused before the session ends with 421; default 20.
    pub errors_max: usize,
    /// From this count of refused commands on, each reply to another waits for `tarpit_delay`; default 10.
    pub tarpit_errors: usize,
    /// Default 1 s.
    pub tarpit_delay: Duration,
    /// Messages that wait for sites which keep up before clients are slowed down to the speed of delivery; 0 is never;
    /// default 100,000.
    pub hold_back_after: u64,
    /// Sessions at once on all listeners; default 16,384.
    pub sessions_max: usize,
    /// Time that a stop waits for sessions; default 10 s.
    pub stop_timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsTable {
    message_size_max: Spanned<ByteSize>,
    header_size_max: Spanned<ByteSize>,
    recipients_max: Spanned<usize>,
    messages_max: Spanned<usize>,
    hops_max: Spanned<usize>,
    command_timeout: Spanned<Period>,
    data_timeout: Spanned<Period>,
    session_timeout: Spanned<Period>,
    commands_max: Spanned<usize>,
    errors_max: Spanned<usize>,
    tarpit_errors: Spanned<usize>,
    tarpit_delay: Spanned<Period>,
    hold_back_after: Spanned<u64>,
    sessions_max: Spanned<usize>,
    stop_timeout: Spanned<Period>,
}

impl Default for LimitsTable {
    fn default() -> Self {
        LimitsTable {
            message_size_max: plain(ByteSize(50 * MIB)),
            header_size_max: plain(ByteSize(MIB)),
            recipients_max: plain(1000),
            messages_max: plain(0),
            hops_max: plain(50),
            command_timeout: seconds(300),
            data_timeout: seconds(180),
            session_timeout: seconds(3600),
            commands_max: plain(100_000),
            errors_max: plain(20),
            tarpit_errors: plain(10),
            tarpit_delay: seconds(1),
            hold_back_after: plain(100_000),
            sessions_max: plain(16_384),
            stop_timeout: seconds(10),
        }
    }
}

pub(super) fn limits(table: &LimitsTable) -> Result<Limits, Problem> {
    Ok(Limits {
        message_bytes_max: message_bytes_max(&table.message_size_max)?,
        header_bytes_max: in_range_by(
            &table.header_size_max,
            |s| s.0,
            HEADER_BYTES_SMALL..=(1 << 32),
            "header_size_max",
        )?,
        recipients_max: recipients_max(&table.recipients_max)?,
        messages_max: messages_max(&table.messages_max)?,
        hops_max: in_range(&table.hops_max, 1..=1000, "hops_max")?,
        command_timeout: time(&table.command_timeout, "command_timeout")?,
        data_timeout: time(&table.data_timeout, "data_timeout")?,
        session_timeout: time(&table.session_timeout, "session_timeout")?,
        commands_max: in_range(&table.commands_max, 100..=1_000_000_000, "commands_max")?,
        errors_max: errors_max(&table.errors_max)?,
        tarpit_errors: in_range(&table.tarpit_errors, 0..=1_000_000, "tarpit_errors")?,
        tarpit_delay: in_range_by(
            &table.tarpit_delay,
            |p| p.0,
            Duration::ZERO..=Duration::from_secs(60),
            "tarpit_delay",
        )?,
        hold_back_after: in_range(&table.hold_back_after, 0..=1_000_000_000, "hold_back_after")?,
        sessions_max: in_range(&table.sessions_max, 1..=1_000_000, "sessions_max")?,
        stop_timeout: time(&table.stop_timeout, "stop_timeout")?,
    })
}

/// `[smtp.limits]`: what one listener has otherwise.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsOverride {
    message_size_max: Option<Spanned<ByteSize>>,
    recipients_max: Option<Spanned<usize>>,
    messages_max: Option<Spanned<usize>>,
    command_timeout: Option<Spanned<Period>>,
    data_timeout: Option<Spanned<Period>>,
    errors_max: Option<Spanned<usize>>,
}

/// `limits` with what the listener has otherwise.
pub(super) fn overridden(limits: &Limits, own: &LimitsOverride) -> Result<Limits, Problem> {
    let mut limits = limits.clone();
    if let Some(size) = &own.message_size_max {
        limits.message_bytes_max = message_bytes_max(size)?;
    }
    if let Some(count) = &own.recipients_max {
        limits.recipients_max = recipients_max(count)?;
    }
    if let Some(count) = &own.messages_max {
        limits.messages_max = messages_max(count)?;
    }
    if let Some(period) = &own.command_timeout {
        limits.command_timeout = time(period, "command_timeout")?;
    }
    if let Some(period) = &own.data_timeout {
        limits.data_timeout = time(period, "data_timeout")?;
    }
    if let Some(count) = &own.errors_max {
        limits.errors_max = errors_max(count)?;
    }
    Ok(limits)
}

fn message_bytes_max(size: &Spanned<ByteSize>) -> Result<u64, Problem> {
    in_range_by(size, |s| s.0, 1024..=(1 << 32), "message_size_max")
}

fn recipients_max(count: &Spanned<usize>) -> Result<usize, Problem> {
    in_range(count, 1..=50_000, "recipients_max")
}

fn messages_max(count: &Spanned<usize>) -> Result<usize, Problem> {
    in_range(count, 0..=1_000_000, "messages_max")
}

fn errors_max(count: &Spanned<usize>) -> Result<usize, Problem> {
    in_range(count, 1..=1_000_000, "errors_max")
}

fn time(period: &Spanned<Period>, name: &str) -> Result<Duration, Problem> {
    in_range_by(period, |p| p.0, second()..=day(), name)
}
