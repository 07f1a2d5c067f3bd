//! Our command parser beside that of smtp-proto: every line of a grammar of pieces, and the differences that are wanted.

use ringmail::smtp::command::{self, Bdat, Command, Extensions};
use ringmail::smtp::{ForwardPath, ReversePath};
use ringmail::spool::BodyType;
use smtp_proto::{MAIL_BODY_8BITMIME, MAIL_BODY_BINARYMIME, MAIL_REQUIRETLS, MAIL_SMTPUTF8, Request};
use std::collections::BTreeMap;

const ALL: Extensions = Extensions {
    smtputf8: true,
    dsn: true,
    auth: true,
    binarymime: true,
    requiretls: true,
    mt_priority: true,
    future_release: true,
};

/// How the two see a line.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// Both take it, and for the same.
    Same,
    /// Both refuse it.
    Refused,
    /// Both take it, for different things.
    Differs,
    OursAlone,
    TheirsAlone,
}

fn compare(line: &str) -> Verdict {
    let with_end = format!("{line}\r\n");
    let mut bytes = with_end.as_bytes().iter();
    let theirs = Request::parse(&mut bytes).ok();
    let ours = command::parse(line.as_bytes(), ALL, true)
        .ok()
        .filter(|ours| !matches!(ours, Command::Bdat(Bdat::Unsized | Bdat::Malformed { .. })));
    match (&ours, &theirs) {
        (None, None) => Verdict::Refused,
        (Some(_), None) => Verdict::OursAlone,
        (None, Some(_)) => Verdict::TheirsAlone,
        (Some(ours), Some(theirs)) if same(ours, theirs) => Verdict::Same,
        _ => Verdict::Differs,
    }
}

fn same<T: AsRef<str>>(ours: &Command<'_>, theirs: &Request<T>) -> bool {
    match (ours, theirs) {
        (Command::Mail(ours), Request::Mail { from }) => {
            let address = match &ours.reverse_path {
                ReversePath::Null => "",
                ReversePath::Mailbox(address) => address.as_str(),
            };
            let set = |flag: u64| from.flags & flag != 0;
            address == from.address.as_ref()
                && ours.size.unwrap_or(0) == from.size as u64
                && (ours.body_type == BodyType::EightBitMime) == set(MAIL_BODY_8BITMIME)
                && (ours.body_type == BodyType::BinaryMime) == set(MAIL_BODY_BINARYMIME)
                && ours.smtputf8 == set(MAIL_SMTPUTF8)
                && ours.requiretls == set(MAIL_REQUIRETLS)
                && ours.priority.map_or(0, i64::from) == from.mt_priority
                && ours.envid.as_deref() == from.env_id.as_ref().map(AsRef::as_ref)
        }
        (Command::Rcpt(ours), Request::Rcpt { to }) => match &ours.forward_path {
            ForwardPath::Mailbox(address) => address.as_str() == to.address.as_ref(),
            ForwardPath::Postmaster => to.address.as_ref().eq_ignore_ascii_case("postmaster"),
        },
        (Command::Bdat(Bdat::Chunk { octets, last }), Request::Bdat { chunk_size, is_last }) => {
            (*octets, *last) == (*chunk_size as u64, *is_last)
        }
        (Command::Ehlo(ours), Request::Ehlo { host }) => *ours == host.as_ref(),
        (Command::Data, Request::Data) | (Command::Rset, Request::Rset) | (Command::Quit, Request::Quit) => true,
        (Command::StartTls, Request::StartTls) | (Command::Noop, Request::Noop { .. }) => true,
        _ => false,
    }
}

const PATHS: [&str; 40] = [
    "<>",
    "<a@b.test>",
    "<A.b+c@B.Test>",
    "<\"a b\"@c.test>",
    "<\"a\\\"b\"@c.test>",
    "<\"a@b\"@c.test>",
    "<a@[192.0.2.1]>",
    "<a@[IPv6:2001:db8::1]>",
    "<@r.test:a@b.test>",
    "<@r.test,@s.test:a@b.test>",
    "<postmaster>",
    "<Postmaster>",
    "<grün@b.test>",
    "<a@bücher.test>",
    "<a>",
    "<@b.test>",
    "<a@>",
    "<a@b@c.test>",
    "<a b@c.test>",
    "<a@b c.test>",
    "<.a@b.test>",
    "<a.@b.test>",
    "<a..b@c.test>",
    "<a@-b.test>",
    "<a@b-.test>",
    "<a@b..test>",
    "<a@b.test.>",
    "<a,b@c.test>",
    "<a@[1.2.3]>",
    "<a@[x",
    "<a@b.test",
    "a@b.test",
    "< a@b.test>",
    "<a@b.test >",
    "<<a@b.test>>",
    "<\"\"@b.test>",
    "<a!b%c@d.test>",
    "<a(c)@b.test>",
    "<a;b@c.test>",
    "",
];
const MAIL_PARAMETERS: [&str; 26] = [
    "",
    " ",
    " SIZE=1",
    " size=1000",
    " SIZE=0",
    " SIZE=",
    " SIZE=-1",
    " SIZE=1x",
    " SIZE=1 SIZE=2",
    " BODY=7BIT",
    " BODY=8BITMIME",
    " body=binarymime",
    " BODY=9BIT",
    " SMTPUTF8",
    " SMTPUTF8=1",
    " RET=FULL",
    " RET=HDRS ENVID=QQ+2B1",
    " RET=NONE",
    " ENVID=",
    " ENVID=a+0Ab",
    " REQUIRETLS",
    " MT-PRIORITY=3",
    " MT-PRIORITY=-9",
    " MT-PRIORITY=10",
    " FOO=BAR",
    "SIZE=1",
];
const RCPT_PARAMETERS: [&str; 12] = [
    "",
    " ",
    " NOTIFY=NEVER",
    " NOTIFY=SUCCESS,FAILURE,DELAY",
    " NOTIFY=NEVER,DELAY",
    " NOTIFY=",
    " ORCPT=rfc822;a@b.test",
    " ORCPT=rfc822;a+0Ab",
    " ORCPT=a@b.test",
    " FOO",
    " SIZE=1",
    "NOTIFY=NEVER",
];
const OTHERS: [&str; 30] = [
    "EHLO a.test",
    "ehlo a.test",
    "EHLO",
    "EHLO a b",
    "EHLO [192.0.2.1]",
    "DATA",
    "data ",
    "DATA x",
    "RSET",
    "RSET x",
    "QUIT",
    "quit x",
    "NOOP",
    "NOOP x y",
    "STARTTLS",
    "STARTTLS x",
    "BDAT 1",
    "bdat 1 last",
    "BDAT 0 LAST",
    "BDAT",
    "BDAT x",
    "BDAT -1",
    "BDAT 1 FIRST",
    "BDAT 1 LAST x",
    "BDAT 18446744073709551615",
    "BDAT 18446744073709551616",
    "",
    "FOO",
    " NOOP",
    "MAIL",
];

fn lines() -> Vec<String> {
    let mut lines: Vec<String> = OTHERS.iter().map(|line| (*line).to_owned()).collect();
    for path in PATHS {
        lines.extend(MAIL_PARAMETERS.iter().map(|parameters| format!("MAIL FROM:{path}{parameters}")));
        lines.extend(RCPT_PARAMETERS.iter().map(|parameters| format!("RCPT TO:{path}{parameters}")));
        lines.push(format!("mail from: {path}"));
        lines.push(format!("MAIL FROM:  {path}"));
    }
    lines
}

/// A difference that is wanted: what it is about, how it shows, and in which lines.
type Wanted = (&'static str, Verdict, fn(&str) -> bool);

/// Where a line has several, the first counts.
const WANTED: [Wanted; 18] = [
    ("quotes of a local-part stay", Verdict::Differs, |line| line.contains('"')),
    ("postmaster without a domain is one", Verdict::Differs, |line| line.to_lowercase().contains("to:<postmaster>")),
    ("address literals", Verdict::OursAlone, |line| line.contains("@[")),
    ("an empty quoted string is a local-part", Verdict::OursAlone, |line| line.contains("<\"\"@")),
    ("a chunk may have 64 bits, and is then refused", Verdict::OursAlone, |line| {
        line.ends_with("18446744073709551615")
    }),
    ("no argument where none is allowed", Verdict::TheirsAlone, |line| line.ends_with(" x") || line == "EHLO a b"),
    ("no space before the verb", Verdict::TheirsAlone, |line| line.starts_with(' ')),
    ("one space behind FROM: at most", Verdict::TheirsAlone, |line| line.contains("FROM:  ")),
    ("a space before parameters", Verdict::TheirsAlone, |line| line.contains(">SIZE") || line.contains(">NOTIFY")),
    ("RCPT needs somebody", Verdict::TheirsAlone, |line| line.contains("TO:<>")),
    ("only RCPT knows postmaster without a domain", Verdict::TheirsAlone, |line| {
        let line = line.to_lowercase();
        line.starts_with("mail") && line.contains("<postmaster>")
    }),
    ("UTF-8 needs SMTPUTF8", Verdict::TheirsAlone, |line| !line.is_ascii() && !line.ends_with(" SMTPUTF8")),
    ("domains and dot-strings keep to the grammar", Verdict::TheirsAlone, |line| {
        ["<a@>", "<a.@", "@-b", "b-.test", "test.>"].iter().any(|part| line.contains(part))
    }),
    ("no space within a path", Verdict::TheirsAlone, |line| line.contains("< ")),
    ("a parameter stands once", Verdict::TheirsAlone, |line| line.ends_with("SIZE=1 SIZE=2")),
    ("xtext hides no controls", Verdict::TheirsAlone, |line| line.ends_with("+0Ab")),
    ("priorities end at 9", Verdict::TheirsAlone, |line| line.ends_with("MT-PRIORITY=10")),
    ("NEVER stands alone", Verdict::TheirsAlone, |line| line.ends_with("NEVER,DELAY")),
];

#[test]
fn what_differs_from_smtp_proto_is_wanted() {
    let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut same, mut refused) = (0, 0);
    for line in lines() {
        let verdict = compare(&line);
        match verdict {
            Verdict::Same => same += 1,
            Verdict::Refused => refused += 1,
            verdict => {
                let wanted = WANTED.iter().find(|(_, shows, is)| *shows == verdict && is(&line));
                let (about, ..) = wanted.unwrap_or_else(|| panic!("{verdict:?} and not wanted: {line:?}"));
                *explained.entry(about).or_default() += 1;
            }
        }
    }
    assert!(same > 100 && refused > 900, "{same} lines are taken by both, {refused} refused by both");
    for (about, ..) in WANTED {
        assert!(explained.contains_key(about), "no line shows: {about}");
    }
}
