//! Queries and answers of RFC 1035 on the wire: what we ask, and what we believe of what comes back.
//!
//! An answer counts only when it carries our id, our question and the response bit; everything else is not ours and
//! the caller goes on waiting. Records are taken from the answer section alone, and there only along the chain of
//! CNAMEs that starts at the name that was asked for; the authority section gives the time of a negative answer
//! (RFC 2308); the additional section is used for the extended response code of EDNS (RFC 6891) and nothing else, so
//! that no server can slip in addresses of other names.
//!
//! Pure: no socket, no clock, no random source. hickory-proto does the decoding.

use super::name::DomainName;
use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use std::net::IpAddr;
use std::time::Duration;

/// What kind of record is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecordKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Mail exchangers.
    Mx,
}

impl RecordKind {
    fn record_type(self) -> RecordType {
        match self {
            RecordKind::A => RecordType::A,
            RecordKind::Aaaa => RecordType::AAAA,
            RecordKind::Mx => RecordType::MX,
        }
    }
}

impl std::fmt::Display for RecordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RecordKind::A => "A",
            RecordKind::Aaaa => "AAAA",
            RecordKind::Mx => "MX",
        })
    }
}

/// One question; also the key of the cache.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// The name.
    pub name: DomainName,
    /// The type of record.
    pub kind: RecordKind,
}

/// What a name has for a type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Data {
    /// Addresses in the order of the answer; 1 to [`ADDRESSES_MAX`].
    Addresses(Vec<IpAddr>),
    /// Preference and host of each MX record as the server wrote it (lower case, no dot at the end, so the root is
    /// the empty text; not checked to be a host name); 1 to [`MX_MAX`].
    Mx(Vec<(u16, String)>),
    /// The name exists and has no record of this type.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// The name is an alias, and the answer does not say what of: ask for this name.
    Alias(DomainName),
}

/// A believed answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What it says.
    pub data: Data,
    /// How long it holds by the server's word (not clamped); `None` when a negative answer does not say.
    pub ttl: Option<Duration>,
}

/// Why a server gave no usable answer. All of these are worth a try at another server, or later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Trouble {
    /// SERVFAIL.
    #[error("server failure")]
    ServFail,
    /// REFUSED.
    #[error("query refused")]
    Refused,
    /// FORMERR, NOTIMP or BADVERS: perhaps a server that does not know EDNS.
    #[error("query not understood")]
    NotUnderstood,
    /// Any other response code.
    #[error("response code {0}")]
    Code(u16),
    /// The server points to others instead of answering: it is not recursive for us.
    #[error("referral instead of an answer")]
    Referral,
    /// A chain of aliases that is too long or goes in a circle.
    #[error("alias chain too long")]
    AliasChain,
    /// Bytes with our id that are not a DNS answer.
    #[error("malformed answer")]
    Garbage,
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// The network or the server's host refused.
    #[error("server not reachable")]
    Unreachable,
    /// We have too many questions under way.
    #[error("too many queries under way")]
    Overloaded,
    /// A bug of ours ended the lookup.
    #[error("internal error")]
    Broken,
}

/// What received bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received {
    /// Not an answer to this query (wrong id, question or direction): go on waiting.
    NotOurs,
    /// The answer did not fit: ask again over TCP.
    Truncated,
    /// The server cannot help.
    Trouble(Trouble),
    /// The answer.
    Answer(Answer),
}

/// Encodes a query: recursion desired, EDNS0 with [`UDP_PAYLOAD_OCTETS`] if wanted.
pub fn encode_query(question: &Question, id: u16, edns: bool) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(wire_name(&question.name), question.kind.record_type()));
    if edns {
        let mut options = Edns::new();
        options.set_max_payload(UDP_PAYLOAD_OCTETS).set_version(0);
        message.set_edns(options);
    }
    message.to_vec().expect("a checked name and an empty EDNS record always fit a message")
}

/// Judges received bytes against the query `question` with `id`. With `last_chance` (TCP) a truncated answer is
/// [`Trouble::Garbage`], because there is no bigger transport left.
pub fn judge(bytes: &[u8], question: &Question, id: u16, last_chance: bool) -> Received {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else { return Received::NotOurs };
    let metadata = header.metadata;
    if metadata.id != id || metadata.message_type != MessageType::Response || metadata.op_code != OpCode::Query {
        return Received::NotOurs;
    }
    // Servers that did not understand may leave the question out; such an answer may only fail, never inform.
    if header.counts.queries == 0 && metadata.response_code != ResponseCode::NoError {
        return match metadata.response_code {
            ResponseCode::NXDomain => Received::NotOurs,
            code => Received::Trouble(trouble_of(code)),
        };
    }
    if header.counts.queries != 1 {
        return Received::NotOurs;
    }
    match Query::read(&mut decoder) {
        Ok(query) if is_question(&query, question) => {}
        _ => return Received::NotOurs,
    }
    if metadata.truncation {
        return if last_chance { Received::Trouble(Trouble::Garbage) } else { Received::Truncated };
    }
    let records = |decoder: &mut BinDecoder<'_>, count: u16| {
        Message::read_records(decoder, count.into(), false, OpCode::Query).map(|(records, _, _)| records)
    };
    let (Ok(answers), Ok(authorities)) =
        (records(&mut decoder, header.counts.answers), records(&mut decoder, header.counts.authorities))
    else {
        return Received::Trouble(Trouble::Garbage);
    };
    let high_code = extended_code(&mut decoder, header.counts.additionals);
    match ResponseCode::from(high_code, metadata.response_code.low()) {
        ResponseCode::NoError => positive(question, &answers, &authorities, metadata.authoritative),
        ResponseCode::NXDomain => answer(Data::NxDomain, negative_ttl(&authorities)),
        code => Received::Trouble(trouble_of(code)),
    }
}

fn answer(data: Data, ttl: Option<Duration>) -> Received {
    Received::Answer(Answer { data, ttl })
}

/// An answer with the code NOERROR: records at the end of the alias chain, or none.
fn positive(question: &Question, answers: &[Record], authorities: &[Record], authoritative: bool) -> Received {
    let asked = wire_name(&question.name);
    let mut name = &asked;
    let mut ttl = u32::MAX;
    for _ in 0..=ALIASES_MAX {
        let (data, records_ttl) = records_of(name, question.kind, answers);
        if let Some(data) = data {
            return answer(data, Some(seconds(ttl.min(records_ttl))));
        }
        match alias_of(name, answers) {
            Some((target, alias_ttl)) => {
                name = target;
                ttl = ttl.min(alias_ttl);
            }
            None => return without_records(name, name != &asked, ttl, authorities, authoritative),
        }
    }
    Received::Trouble(Trouble::AliasChain)
}

/// The chain ended at `name` and the answer has no record for it.
fn without_records(name: &Name, is_alias: bool, ttl: u32, authorities: &[Record], authoritative: bool) -> Received {
    let has_soa = authorities.iter().any(|record| record.record_type() == RecordType::SOA);
    if has_soa {
        return answer(Data::NoData, negative_ttl(authorities));
    }
    if is_alias {
        return match DomainName::parse(&name_text(name)) {
            Some(target) => answer(Data::Alias(target), Some(seconds(ttl))),
            None => answer(Data::NoData, None),
        };
    }
    // RFC 2308 section 2.2: name servers without SOA are a referral, not "no data"; to take one for the other would
    // bounce mail because a server is not recursive.
    let has_servers = authorities.iter().any(|record| record.record_type() == RecordType::NS);
    if has_servers && !authoritative {
        return Received::Trouble(Trouble::Referral);
    }
    answer(Data::NoData, None)
}

/// Records of `name` and their smallest TTL.
fn records_of(name: &Name, kind: RecordKind, answers: &[Record]) -> (Option<Data>, u32) {
    let mut ttl = u32::MAX;
    let mut addresses = Vec::new();
    let mut exchangers = Vec::new();
    for record in answers.iter().filter(|record| record.dns_class == DNSClass::IN && &record.name == name) {
        match (&record.data, kind) {
            (RData::A(address), RecordKind::A) => push_bounded(&mut addresses, IpAddr::V4(address.0), ADDRESSES_MAX),
            (RData::AAAA(address), RecordKind::Aaaa) => {
                push_bounded(&mut addresses, IpAddr::V6(address.0), ADDRESSES_MAX);
            }
            (RData::MX(mx), RecordKind::Mx) => {
                push_bounded(&mut exchangers, (mx.preference, name_text(&mx.exchange)), MX_MAX);
            }
            _ => continue,
        }
        ttl = ttl.min(record.ttl);
    }
    let data = match kind {
        RecordKind::Mx if !exchangers.is_empty() => Some(Data::Mx(exchangers)),
        RecordKind::A | RecordKind::Aaaa if !addresses.is_empty() => Some(Data::Addresses(addresses)),
        _ => None,
    };
    (data, ttl)
}

fn push_bounded<T: PartialEq>(list: &mut Vec<T>, item: T, max: usize) {
    if list.len() < max && !list.contains(&item) {
        list.push(item);
    }
}

fn alias_of<'a>(name: &Name, answers: &'a [Record]) -> Option<(&'a Name, u32)> {
    answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.dns_class == DNSClass::IN && &record.name == name => {
            Some((&target.0, record.ttl))
        }
        _ => None,
    })
}

/// RFC 2308 section 5: the smaller of the SOA's TTL and its MINIMUM.
fn negative_ttl(authorities: &[Record]) -> Option<Duration> {
    authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(seconds(record.ttl.min(soa.minimum))),
        _ => None,
    })
}

/// The upper bits of the response code. Other records there are skipped, and one that cannot be decoded ends the
/// search: nothing of this section may spoil an answer.
fn extended_code(decoder: &mut BinDecoder<'_>, count: u16) -> u8 {
    for _ in 0..count {
        match Message::read_records(decoder, 1, true, OpCode::Query) {
            Ok((_, Some(edns), _)) => return edns.rcode_high(),
            Ok(_) => {}
            Err(_) => return 0,
        }
    }
    0
}

fn trouble_of(code: ResponseCode) -> Trouble {
    match code {
        ResponseCode::ServFail => Trouble::ServFail,
        ResponseCode::Refused => Trouble::Refused,
        // 16 is BADVERS (RFC 6891) and BADSIG (RFC 8945); we sign nothing, and hickory-proto reads it as the latter.
        ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS | ResponseCode::BADSIG => {
            Trouble::NotUnderstood
        }
        other => Trouble::Code(other.into()),
    }
}

fn is_question(query: &Query, question: &Question) -> bool {
    query.query_class() == DNSClass::IN
        && query.query_type() == question.kind.record_type()
        && query.name() == &wire_name(&question.name)
}

fn wire_name(name: &DomainName) -> Name {
    Name::from_labels(name.as_str().split('.').map(str::as_bytes)).expect("a checked name has labels that fit")
}

/// Lower case, without the dot at the end; octets that do not belong in a name come out escaped (`\032`).
fn name_text(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// A TTL with the highest bit set counts as 0 (RFC 2181 section 8).
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(if ttl > i32::MAX as u32 { 0 } else { ttl.into() })
}

/// UDP payload that we announce: no fragments on any usual path (DNS flag day 2020).
pub const UDP_PAYLOAD_OCTETS: u16 = 1232;
/// Addresses kept of one answer.
pub const ADDRESSES_MAX: usize = 32;
/// MX records kept of one answer.
pub const MX_MAX: usize = 100;
/// CNAMEs followed within one answer.
pub const ALIASES_MAX: usize = 8;

/// Body of the fuzz target: whatever bytes come as an answer, judging them ends, keeps its bounds and never believes
/// another id.
pub fn fuzz_answer(data: &[u8]) {
    let Some((&selector, rest)) = data.split_first() else { return };
    let kind = [RecordKind::A, RecordKind::Aaaa, RecordKind::Mx][usize::from(selector) % 3];
    let question = Question { name: DomainName::parse("mail.example").expect("a good name"), kind };
    let id = 0x5a5a;
    // Half of the inputs are whole messages; the others are the records behind a good header and question.
    let mut bytes = if selector & 0x80 == 0 { rest.to_vec() } else { encode_query(&question, id, false) };
    if selector & 0x80 != 0 {
        let (counts, records) = rest.split_at(rest.len().min(4));
        bytes[2] |= 0x80;
        for (slot, count) in [7, 9, 11, 3].into_iter().zip(counts) {
            bytes[slot] = count & 0x0f;
        }
        bytes.extend_from_slice(records);
    } else if bytes.len() > 1 {
        bytes[..2].copy_from_slice(&id.to_be_bytes());
    }
    let received = judge(&bytes, &question, id, false);
    assert_eq!(received, judge(&bytes, &question, id, false), "judging depends on the bytes only");
    assert_eq!(judge(&bytes, &question, id ^ 1, false), Received::NotOurs);
    if let Received::Answer(answer) = received {
        match answer.data {
            Data::Addresses(addresses) => {
                assert!((1..=ADDRESSES_MAX).contains(&addresses.len()));
                assert!(addresses.iter().all(|address| address.is_ipv4() == (kind == RecordKind::A)));
            }
            Data::Mx(records) => assert!(kind == RecordKind::Mx && (1..=MX_MAX).contains(&records.len())),
            Data::NoData | Data::NxDomain | Data::Alias(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, SOA};
    use proptest::prelude::*;
    use std::str::FromStr;

    const ID: u16 = 0x1234;

    fn question(kind: RecordKind) -> Question {
        Question { name: DomainName::parse("example.com").unwrap(), kind }
    }

    fn name(text: &str) -> Name {
        Name::from_str(text).unwrap()
    }

    fn record(owner: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(name(owner), ttl, data)
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        record(owner, ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn cname(owner: &str, target: &str) -> Record {
        record(owner, 300, RData::CNAME(CNAME(name(target))))
    }

    fn mx(preference: u16, exchange: &str) -> Record {
        record("example.com.", 60, RData::MX(MX::new(preference, name(exchange))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        record("com.", ttl, RData::SOA(SOA::new(name("a."), name("b."), 1, 2, 3, 4, minimum)))
    }

    /// A good answer without records.
    fn message(kind: RecordKind) -> Message {
        let mut message = Message::response(ID, OpCode::Query);
        message.add_query(Query::query(name("Example.COM."), kind.record_type()));
        message
    }

    fn judged(message: &Message, kind: RecordKind) -> Received {
        judge(&message.to_vec().unwrap(), &question(kind), ID, false)
    }

    fn check(kind: RecordKind, answers: Vec<Record>, expected: Data, ttl_s: u64) {
        let mut message = message(kind);
        message.insert_answers(answers);
        assert_eq!(judged(&message, kind), answer(expected, Some(Duration::from_secs(ttl_s))));
    }

    fn addresses(last: &[u8]) -> Data {
        Data::Addresses(last.iter().map(|&last| IpAddr::from([192, 0, 2, last])).collect())
    }

    #[test]
    fn a_query_asks_what_was_meant() {
        let bytes = encode_query(&question(RecordKind::Mx), ID, true);
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, ID);
        assert!(message.metadata.recursion_desired && message.metadata.message_type == MessageType::Query);
        assert_eq!(message.queries, [Query::query(name("example.com."), RecordType::MX)]);
        assert_eq!(message.edns.unwrap().max_payload(), 1232);
        let plain = encode_query(&question(RecordKind::Mx), ID, false);
        assert!(Message::from_vec(&plain).unwrap().edns.is_none());
    }

    #[test]
    fn records_of_the_asked_name_and_type_are_taken() {
        check(RecordKind::A, vec![a("example.com.", 60, 1), a("EXAMPLE.com.", 30, 2)], addresses(&[1, 2]), 30);
        check(RecordKind::A, vec![a("example.com.", 60, 1), a("example.com.", 60, 1)], addresses(&[1]), 60);
        // Records of other names and types in the answer are not ours.
        check(RecordKind::A, vec![a("other.com.", 1, 9), mx(1, "x."), a("example.com.", 60, 1)], addresses(&[1]), 60);
        let six = IpAddr::from_str("2001:db8::1").unwrap();
        let aaaa = record("example.com.", 60, RData::AAAA(AAAA::from_str("2001:db8::1").unwrap()));
        check(RecordKind::Aaaa, vec![aaaa], Data::Addresses(vec![six]), 60);
        check(
            RecordKind::Mx,
            vec![mx(20, "MX2.Example.com."), mx(10, "mx1.example.com."), mx(0, ".")],
            Data::Mx(vec![(20, "mx2.example.com".into()), (10, "mx1.example.com".into()), (0, String::new())]),
            60,
        );
    }

    #[test]
    fn ttls_of_two_to_the_31_and_more_count_as_none() {
        check(RecordKind::A, vec![a("example.com.", 0x8000_0000, 1)], addresses(&[1]), 0);
    }

    #[test]
    fn alias_chains_are_followed_in_any_order() {
        let chain = vec![a("c.", 60, 1), cname("b.", "c."), cname("example.com.", "b.")];
        check(RecordKind::A, chain, addresses(&[1]), 60);
        check(
            RecordKind::A,
            vec![cname("example.com.", "elsewhere.example.")],
            Data::Alias(DomainName::parse("elsewhere.example").unwrap()),
            300,
        );
    }

    #[test]
    fn long_and_circular_alias_chains_end_in_trouble() {
        let mut circle = message(RecordKind::A);
        circle.insert_answers(vec![cname("example.com.", "b."), cname("b.", "example.com.")]);
        assert_eq!(judged(&circle, RecordKind::A), Received::Trouble(Trouble::AliasChain));
        for (links, good) in [(ALIASES_MAX, true), (ALIASES_MAX + 1, false)] {
            let owner = |n: usize| if n == 0 { "example.com.".to_owned() } else { format!("n{n}.") };
            let mut long = message(RecordKind::A);
            long.insert_answers((0..links).map(|n| cname(&owner(n), &owner(n + 1))).collect());
            long.add_answer(a(&owner(links), 60, 1));
            assert_eq!(matches!(judged(&long, RecordKind::A), Received::Answer(_)), good, "{links} links");
        }
    }

    #[test]
    fn negative_answers_carry_their_time() {
        for (code, expected) in [(ResponseCode::NoError, Data::NoData), (ResponseCode::NXDomain, Data::NxDomain)] {
            let mut negative = message(RecordKind::Mx);
            negative.metadata.response_code = code;
            assert_eq!(judged(&negative, RecordKind::Mx), answer(expected.clone(), None));
            negative.add_authority(soa(900, 100));
            assert_eq!(judged(&negative, RecordKind::Mx), answer(expected, Some(Duration::from_secs(100))));
        }
    }

    #[test]
    fn a_referral_is_not_an_absence() {
        let mut referral = message(RecordKind::Mx);
        referral.add_authority(record("com.", 60, RData::NS(NS(name("a.gtld.")))));
        assert_eq!(judged(&referral, RecordKind::Mx), Received::Trouble(Trouble::Referral));
        referral.metadata.authoritative = true;
        assert_eq!(judged(&referral, RecordKind::Mx), answer(Data::NoData, None));
    }

    #[test]
    fn the_additional_section_informs_about_nothing() {
        let mut sneaky = message(RecordKind::A);
        sneaky.add_additional(a("example.com.", 60, 66));
        assert_eq!(judged(&sneaky, RecordKind::A), answer(Data::NoData, None));
        // Nor can it spoil an answer.
        let mut good = message(RecordKind::A);
        good.add_answer(a("example.com.", 60, 1));
        let mut bytes = good.to_vec().unwrap();
        bytes[11] = 1;
        bytes.extend_from_slice(&[0xff; 20]);
        assert!(matches!(judge(&bytes, &question(RecordKind::A), ID, false), Received::Answer(_)));
    }

    #[test]
    fn servers_that_cannot_help_say_how() {
        let cases = [
            (ResponseCode::ServFail, Trouble::ServFail),
            (ResponseCode::Refused, Trouble::Refused),
            (ResponseCode::FormErr, Trouble::NotUnderstood),
            (ResponseCode::NotImp, Trouble::NotUnderstood),
            (ResponseCode::YXDomain, Trouble::Code(6)),
        ];
        for (code, trouble) in cases {
            let mut failed = message(RecordKind::A);
            failed.metadata.response_code = code;
            assert_eq!(judged(&failed, RecordKind::A), Received::Trouble(trouble));
            failed.queries.clear();
            assert_eq!(judged(&failed, RecordKind::A), Received::Trouble(trouble), "without a question");
        }
        let mut unversioned = message(RecordKind::A);
        unversioned.metadata.response_code = ResponseCode::BADVERS;
        unversioned.set_edns(Edns::new().set_rcode_high(1).clone());
        assert_eq!(judged(&unversioned, RecordKind::A), Received::Trouble(Trouble::NotUnderstood));
    }

    #[test]
    fn what_does_not_match_is_not_ours() {
        let check = |change: &dyn Fn(&mut Message)| {
            let mut foreign = message(RecordKind::A);
            foreign.add_answer(a("example.com.", 60, 66));
            change(&mut foreign);
            assert_eq!(judged(&foreign, RecordKind::A), Received::NotOurs);
        };
        check(&|message| message.metadata.id ^= 1);
        check(&|message| message.metadata.message_type = MessageType::Query);
        check(&|message| message.metadata.op_code = OpCode::Notify);
        check(&|message| message.queries[0] = Query::query(name("example.org."), RecordType::A));
        check(&|message| message.queries[0] = Query::query(name("example.com."), RecordType::AAAA));
        check(&|message| {
            message.queries[0].set_query_class(DNSClass::CH);
        });
        check(&|message| message.queries.clear());
        check(&|message| {
            message.queries.clear();
            message.metadata.response_code = ResponseCode::NXDomain;
        });
        check(&|message| {
            message.add_query(Query::query(name("example.com."), RecordType::A));
        });
    }

    #[test]
    fn truncation_asks_for_tcp_once() {
        let mut cut = message(RecordKind::A);
        cut.metadata.truncation = true;
        let bytes = cut.to_vec().unwrap();
        assert_eq!(judge(&bytes, &question(RecordKind::A), ID, false), Received::Truncated);
        assert_eq!(judge(&bytes, &question(RecordKind::A), ID, true), Received::Trouble(Trouble::Garbage));
    }

    #[test]
    fn compression_loops_and_cut_records_are_garbage() {
        let mut good = message(RecordKind::A);
        good.add_answer(a("example.com.", 60, 1));
        let bytes = good.to_vec().unwrap();
        let question_end = encode_query(&question(RecordKind::A), ID, false).len();
        let garbage = Received::Trouble(Trouble::Garbage);
        for end in question_end..bytes.len() {
            assert_eq!(judge(&bytes[..end], &question(RecordKind::A), ID, false), garbage, "cut at {end}");
        }
        for end in 0..question_end {
            assert_eq!(judge(&bytes[..end], &question(RecordKind::A), ID, false), Received::NotOurs, "cut at {end}");
        }
        let here = question_end as u8;
        for pointer in [here, here + 2, 0xff] {
            let mut looped = bytes[..question_end].to_vec();
            looped.extend_from_slice(&[0xc0, pointer]);
            looped.extend_from_slice(&bytes[bytes.len() - 14..]);
            assert_eq!(judge(&looped, &question(RecordKind::A), ID, false), garbage, "pointer to {pointer}");
        }
    }

    #[test]
    fn lists_are_bounded() {
        let mut many = message(RecordKind::Mx);
        many.insert_answers((0..500).map(|n| mx(n, &format!("mx{n}."))).collect());
        let Received::Answer(Answer { data: Data::Mx(records), .. }) = judged(&many, RecordKind::Mx) else { panic!() };
        assert_eq!(records.len(), MX_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_answer(&data);
        }

        #[test]
        fn any_change_of_a_good_answer_is_judged(changes in proptest::collection::vec((0usize..120, any::<u8>()), 1..6)) {
            let mut good = message(RecordKind::Mx);
            good.insert_answers(vec![mx(10, "mx1.example.com."), cname("b.", "c."), mx(20, "mx2.example.com.")]);
            good.add_authority(soa(9, 9));
            let mut bytes = good.to_vec().unwrap();
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = judge(&bytes, &question(RecordKind::Mx), ID, true);
        }
    }
}
