//! `ringmail spool ...`: looks at the spool folder itself, with or without a server that uses it.

use super::arguments::{CatArguments, FormArguments, SpoolCommand};
use super::exit::{self, Failure};
use crate::config::Config;
use crate::spool::{
    self, Copied, Envelope, FindError, Finding, FoundMessage, Inspection, OpenError, Origin, Progress, QueueId,
    Repaired,
};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

pub(super) fn perform(config: &Config, command: SpoolCommand) -> Result<ExitCode, Failure> {
    let folder = config.data_dir.join("spool");
    match command {
        SpoolCommand::Check(form) => check(&folder, &form),
        SpoolCommand::Cat(arguments) => cat(&folder, &arguments),
        SpoolCommand::Repair(form) => repair(&folder, &form),
    }
}

fn check(folder: &Path, form: &FormArguments) -> Result<ExitCode, Failure> {
    let mut line = ProgressLine::new();
    let seen = spool::inspect(folder, &mut |progress| line.show(progress));
    drop(line);
    let seen = seen.map_err(|error| cannot_open(folder, &error))?;
    let text = if form.json { format!("{:#}\n", as_json(folder, &seen)) } else { as_text(folder, &seen) };
    print(text.as_bytes())?;
    Ok(if seen.is_damaged() { exit::DATA.into() } else { ExitCode::SUCCESS })
}

/// One line on a terminal that is written over and over, and gone in the end.
struct ProgressLine {
    is_shown: bool,
    is_written: bool,
}

impl ProgressLine {
    fn new() -> ProgressLine {
        ProgressLine { is_shown: io::stderr().is_terminal(), is_written: false }
    }

    fn show(&mut self, progress: Progress) {
        if self.is_shown {
            eprint!("\r\x1b[Kreading segment {} of {}", progress.done, progress.of);
            self.is_written = true;
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_written {
            eprint!("\r\x1b[K");
        }
    }
}

fn as_text(folder: &Path, seen: &Inspection) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: u64| {
        writeln!(out, "{name:<22}{value}").expect("a String takes everything");
    };
    for (name, value) in totals(seen) {
        line(&name.replace('_', " "), value);
    }
    for finding in &seen.findings {
        writeln!(out, "{}", finding_line(folder, finding)).expect("a String takes everything");
    }
    out.push_str(match (seen.findings.is_empty(), seen.is_damaged()) {
        (true, _) => "the spool is sound\n",
        (false, false) => "the spool is sound; see the remarks above\n",
        (false, true) => "the spool is damaged; `ringmail spool repair` sets aside what cannot be read\n",
    });
    out
}

fn totals(seen: &Inspection) -> [(&'static str, u64); 7] {
    [
        ("segments", seen.segments),
        ("free_segments", seen.free_segments),
        ("bytes_read", seen.bytes),
        ("records", seen.records),
        ("messages_waiting", seen.messages),
        ("large_bodies", seen.large_bodies),
        ("leftovers", seen.leftovers),
    ]
}

/// `FILE: octets A to B: message ID: what is wrong [label]`
fn finding_line(folder: &Path, finding: &Finding) -> String {
    let mut out = format!("{}: ", folder.join(&finding.file).display());
    match (finding.offset, finding.len) {
        (Some(offset), Some(len)) => write!(out, "octets {offset} to {}: ", offset + len),
        (Some(offset), None) => write!(out, "octet {offset}: "),
        (None, _) => Ok(()),
    }
    .expect("a String takes everything");
    if let Some(queue_id) = finding.queue_id {
        write!(out, "message {queue_id}: ").expect("a String takes everything");
    }
    out + &format!("{} [{}]", finding.verdict, finding.verdict.label())
}

fn as_json(folder: &Path, seen: &Inspection) -> Value {
    let mut object: serde_json::Map<String, Value> =
        totals(seen).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    object.insert("spool".into(), folder.to_string_lossy().into());
    object.insert("damaged".into(), seen.is_damaged().into());
    let finding = |finding: &Finding| {
        json!({
            "file": finding.file,
            "offset": finding.offset,
            "length": finding.len,
            "id": finding.queue_id.map(|queue_id| queue_id.to_string()),
            "verdict": finding.verdict.label(),
            "text": finding.verdict.to_string(),
            "damage": finding.verdict.is_damage(),
        })
    };
    object.insert("findings".into(), seen.findings.iter().map(finding).collect());
    object.into()
}

fn repair(folder: &Path, form: &FormArguments) -> Result<ExitCode, Failure> {
    let mut line = ProgressLine::new();
    let done = spool::repair(folder, &mut |progress| line.show(progress));
    drop(line);
    let done = done.map_err(|error| cannot_open(folder, &error))?;
    let text = if form.json { format!("{:#}\n", repaired_json(folder, &done)) } else { repaired_text(folder, &done) };
    print(text.as_bytes())?;
    Ok(if done.inspection.is_damaged() { exit::DATA.into() } else { ExitCode::SUCCESS })
}

fn repaired_text(folder: &Path, done: &Repaired) -> String {
    let mut out = String::new();
    for finding in &done.inspection.findings {
        out += &finding_line(folder, finding);
        out.push('\n');
    }
    for copied in &done.copies {
        let range = copied.range.map_or(String::new(), |(from, to)| format!(" octets {from} to {to}"));
        let verb = if copied.was_there { "was copied before:" } else { "copied:" };
        let (from, to) = (folder.join(&copied.from), folder.join(&copied.to));
        write!(out, "{verb} {}{range} to {}", from.display(), to.display()).expect("a String takes everything");
        if copied.unreadable_pages > 0 {
            write!(out, " ({} pages cannot be read, zeros there)", copied.unreadable_pages)
                .expect("a String takes everything");
        }
        out.push('\n');
    }
    out.push_str(match (done.copies.is_empty(), done.inspection.is_damaged()) {
        (true, false) => "nothing to set aside\n",
        (true, true) => "nothing of it is left to copy\n",
        (false, _) => "nothing was removed or changed; the next start delivers everything that is whole\n",
    });
    out
}

fn repaired_json(folder: &Path, done: &Repaired) -> Value {
    let mut object = as_json(folder, &done.inspection);
    let copy = |copied: &Copied| {
        json!({
            "from": copied.from,
            "offset": copied.range.map(|(from, _)| from),
            "length": copied.range.map(|(from, to)| to - from),
            "to": copied.to,
            "unreadable_pages": copied.unreadable_pages,
            "was_there": copied.was_there,
        })
    };
    object["copies"] = done.copies.iter().map(copy).collect();
    object
}

fn cat(folder: &Path, arguments: &CatArguments) -> Result<ExitCode, Failure> {
    let queue_id: QueueId = arguments.id.parse().map_err(|_| {
        let message = format!("\"{}\" is not a queue ID", arguments.id.escape_debug());
        Failure::new(exit::DATA, message).hint("it has 12 characters, as in the log and in `ringmail queue list`")
    })?;
    let message = spool::find(folder, queue_id).map_err(|error| match error {
        FindError::NotFound(_) => Failure::new(exit::NO_INPUT, error.to_string())
            .hint("it may be delivered and its place used again; the log tells: look for id= with this queue ID"),
        FindError::Damaged { .. } => {
            Failure::new(exit::DATA, error.to_string()).hint("`ringmail spool check` shows what else is damaged")
        }
        FindError::Open(error) => cannot_open(folder, &error),
    })?;
    if arguments.envelope {
        print(envelope_text(&message).as_bytes())?;
    } else {
        let written = write_message(message, &mut io::stdout().lock());
        broken_pipe_is_no_failure(written)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Trace and content as they were before dot-stuffing.
fn write_message(message: FoundMessage, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(message.trace())?;
    let is_plain = message.no_leading_dots;
    let mut body = BufReader::with_capacity(1 << 18, message.into_body());
    if is_plain {
        io::copy(&mut body, out)?;
    } else {
        unstuff(&mut body, out)?;
    }
    out.flush()
}

/// Removes the dot that the wire form puts before a line that begins with one; only CRLF ends a line.
fn unstuff(body: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<()> {
    let mut piece = Vec::new();
    let mut starts_line = true;
    while body.read_until(b'\n', &mut piece)? > 0 {
        let text = if starts_line { piece.strip_prefix(b".").unwrap_or(&piece) } else { &piece[..] };
        out.write_all(text)?;
        starts_line = piece.ends_with(b"\r\n");
        piece.clear();
    }
    Ok(())
}

fn envelope_text(message: &FoundMessage) -> String {
    let envelope: &Envelope = &message.envelope;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let value: String = value.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        writeln!(out, "{:<16}{value}", format!("{name}:")).expect("a String takes everything");
    };
    line("Queue-ID", message.queue_id.to_string());
    line("Arrival-ms", message.arrival_ms.to_string());
    line("Size", message.size.to_string());
    line("From", envelope.reverse_path.to_string());
    line("Body-type", format!("{:?}", envelope.body_type));
    line("Priority", envelope.priority.to_string());
    line("SMTPUTF8", envelope.smtputf8.to_string());
    line("REQUIRETLS", envelope.requiretls.to_string());
    if let Some(ret) = envelope.ret {
        line("RET", format!("{ret:?}"));
    }
    if let Some(envid) = &envelope.envid {
        let label = if envelope.origin == Origin::Internal { "About" } else { "ENVID" };
        line(label, envid.clone());
    }
    match &envelope.origin {
        Origin::Internal => line("Origin", "ringmail".into()),
        Origin::Smtp { client, helo, login } => {
            line("Client", client.to_string());
            line("HELO", helo.clone());
            if let Some(login) = login {
                line("Login", login.clone());
            }
        }
    }
    for recipient in &envelope.recipients {
        line("To", format!("<{}>", recipient.forward_path));
        if let Some(orcpt) = &recipient.orcpt {
            line("  ORCPT", orcpt.clone());
        }
        if recipient.notify.explicit {
            let asked = [
                ("SUCCESS", recipient.notify.success),
                ("FAILURE", recipient.notify.failure),
                ("DELAY", recipient.notify.delay),
            ];
            let names: Vec<&str> = asked.into_iter().filter_map(|(name, is_asked)| is_asked.then_some(name)).collect();
            line("  NOTIFY", if names.is_empty() { "NEVER".into() } else { names.join(",") });
        }
    }
    out
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    broken_pipe_is_no_failure(out.write_all(text).and_then(|()| out.flush()))
}

/// Whoever reads our output may stop when it has seen enough.
fn broken_pipe_is_no_failure(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io(exit::IO, "cannot write the answer", &error))
        }
        _ => Ok(()),
    }
}

fn cannot_open(folder: &Path, error: &OpenError) -> Failure {
    match error {
        OpenError::Io(source) if source.kind() == io::ErrorKind::NotFound => {
            let message = format!("there is no spool at {}", folder.display());
            Failure::new(exit::NO_INPUT, message).hint("give the server's configuration with --config")
        }
        OpenError::Io(source) => Failure::io(exit::IO, format!("cannot read {}", folder.display()), source),
        OpenError::UnknownVersion { .. } => {
            Failure::new(exit::DATA, error.to_string()).hint("use the ringmail that wrote it, or a newer one")
        }
        OpenError::Locked { .. } => Failure::new(exit::TEMPORARY, error.to_string()),
        OpenError::SegmentBytes => Failure::new(exit::CONFIG, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::data;
    use crate::spool::Verdict;

    #[test]
    fn unstuffing_by_pieces_agrees_with_the_one_for_delivery() {
        for body in ["", "..\r\n", "a\r\n..b\r\n", "a\n.b\r\n..c", "\r\n\r\n...\r\n", ".", "a\r.b\r\n..\r\n"] {
            let (mut pieces, mut whole) = (Vec::new(), Vec::new());
            unstuff(&mut BufReader::with_capacity(1, body.as_bytes()), &mut pieces).unwrap();
            data::unstuff(body.as_bytes(), &mut whole);
            assert_eq!(pieces, whole, "{body:?}");
        }
    }

    #[test]
    fn findings_name_file_place_message_and_verdict() {
        let finding = Finding {
            file: "segments/00000000A.seg".into(),
            offset: Some(16384),
            len: Some(64),
            queue_id: Some(QueueId(0)),
            verdict: Verdict::Undecodable,
        };
        let line = finding_line(Path::new("/spool"), &finding);
        assert_eq!(
            line,
            "/spool/segments/00000000A.seg: octets 16384 to 16448: message 000000000000: \
             a whole record whose envelope makes no sense; it is not delivered [undecodable]"
        );
        let seen = Inspection { findings: vec![finding], ..Inspection::default() };
        let json = as_json(Path::new("/spool"), &seen);
        assert_eq!((&json["damaged"], &json["findings"][0]["verdict"]), (&json!(true), &json!("undecodable")));
        assert_eq!((&json["findings"][0]["offset"], &json["messages_waiting"]), (&json!(16384), &json!(0)));
        let sealed = Finding { verdict: Verdict::Sealed, ..seen.findings[0].clone() };
        assert!(!Inspection { findings: vec![sealed], ..Inspection::default() }.is_damaged());
    }
}
