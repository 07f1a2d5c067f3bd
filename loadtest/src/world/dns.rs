//! A name server for the simulated Internet, on UDP and TCP: answers from a table, as slowly and as badly as it is told.

use super::model::{NameEntry, Names};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, MX, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ringmail::rt;
use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Longest answer in a datagram; a longer one is cut and asked for again over TCP.
const UDP_BYTES_MAX: usize = 1232;
/// Seconds that answers may be kept.
const TTL: u32 = 300;
/// A TCP client has to have asked by then.
const TCP_TIME: Duration = Duration::from_secs(5);

/// What the server answers from.
pub struct Table {
    names: Names,
    /// Names above those: they are there, too, without records (RFC 8020).
    above: HashSet<String>,
    delay: Duration,
}

impl Table {
    /// Of these names, each answer with this delay.
    pub fn new(names: Names, delay: Duration) -> Table {
        let dots = |name: &str| name.match_indices('.').map(|(at, _)| name[at + 1..].to_owned()).collect::<Vec<_>>();
        let above = names.keys().flat_map(|name| dots(name)).collect();
        Table { names, above, delay }
    }

    /// The answer to a query, at most so many octets; `None` where silence is the answer.
    fn answer(&self, query: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let asked = query.queries.first()?;
        let name = asked.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let entry = self.names.get(&name);
        if entry.is_some_and(|entry| entry.silent) {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(asked.clone());
        match entry {
            Some(entry) if entry.servfail => answer.metadata.response_code = ResponseCode::ServFail,
            Some(entry) => {
                let records = records(entry, asked.query_type());
                let record = |data| Record::from_rdata(asked.name().clone(), TTL, data);
                answer.insert_answers(records.into_iter().map(record).collect());
            }
            None if self.above.contains(&name) => {}
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        if answer.answers.is_empty() && answer.metadata.response_code != ResponseCode::ServFail {
            answer.authorities.push(Record::from_rdata(absolute(super::model::ORIGIN), TTL, RData::SOA(soa())));
        }
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= bytes_max {
            return Some(bytes);
        }
        answer.answers.clear();
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    }
}

fn records(entry: &NameEntry, wanted: RecordType) -> Vec<RData> {
    match wanted {
        RecordType::MX => {
            let mx = |(preference, host): &(u16, String)| RData::MX(MX::new(*preference, absolute(host)));
            entry.mx.iter().map(mx).collect()
        }
        RecordType::A => entry.a.iter().map(|address| RData::A(A(*address))).collect(),
        _ => Vec::new(),
    }
}

fn absolute(name: &str) -> Name {
    Name::from_str(&format!("{name}.")).unwrap_or_else(|_| Name::root())
}

fn soa() -> SOA {
    SOA::new(absolute("ns.test"), absolute("hostmaster.test"), 1, 3600, 600, 86400, 60)
}

/// Binds both sockets and answers on threads of their own until the process ends.
pub fn serve(address: SocketAddr, table: Arc<Table>) -> io::Result<()> {
    let udp = UdpSocket::bind(address)?;
    let tcp = TcpListener::bind(udp.local_addr()?)?;
    for _ in 0..2 {
        let (udp, table) = (udp.try_clone()?, table.clone());
        rt::thread("dns-udp", move || serve_udp(&udp, &table))?;
    }
    rt::thread("dns-tcp", move || {
        for stream in tcp.incoming().flatten() {
            // A client that breaks off is its own affair.
            drop(answer_tcp(stream, &table));
        }
    })?;
    Ok(())
}

fn serve_udp(socket: &UdpSocket, table: &Table) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((octets, from)) = socket.recv_from(&mut buffer) else { continue };
        std::thread::sleep(table.delay);
        if let Some(answer) = table.answer(&buffer[..octets], UDP_BYTES_MAX) {
            // The asker may be gone by now.
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn answer_tcp(mut stream: TcpStream, table: &Table) -> io::Result<()> {
    stream.set_read_timeout(Some(TCP_TIME))?;
    stream.set_write_timeout(Some(TCP_TIME))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut query)?;
    let Some(answer) = table.answer(&query, usize::from(u16::MAX)) else { return Ok(()) };
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use std::net::Ipv4Addr;

    fn ask(table: &Table, name: &str, kind: RecordType, bytes_max: usize) -> Option<Message> {
        let mut query = Message::query();
        query.add_query(Query::query(absolute(name), kind));
        let answer = table.answer(&query.to_vec().unwrap(), bytes_max)?;
        Some(Message::from_vec(&answer).unwrap())
    }

    #[test]
    fn answers_are_those_of_the_table() {
        let mut names = Names::new();
        let mx = (0..60).map(|host| (10, format!("mx{host}.s1.test"))).collect();
        names.insert("d1.test".into(), NameEntry { mx, ..NameEntry::default() });
        names.insert("mx0.s1.test".into(), NameEntry { a: vec![Ipv4Addr::LOCALHOST], ..NameEntry::default() });
        names.insert("d2.test".into(), NameEntry { servfail: true, ..NameEntry::default() });
        names.insert("d3.test".into(), NameEntry { silent: true, ..NameEntry::default() });
        let table = Table::new(names, Duration::ZERO);
        let code = |name, kind| {
            ask(&table, name, kind, 4096).map(|answer| (answer.metadata.response_code, answer.answers.len()))
        };
        assert_eq!(code("D1.test", RecordType::MX), Some((ResponseCode::NoError, 60)));
        assert_eq!(code("d1.test", RecordType::A), Some((ResponseCode::NoError, 0)));
        assert_eq!(code("mx0.s1.test", RecordType::A), Some((ResponseCode::NoError, 1)));
        assert_eq!(code("s1.test", RecordType::A), Some((ResponseCode::NoError, 0)));
        assert_eq!(code("d9.test", RecordType::MX), Some((ResponseCode::NXDomain, 0)));
        assert_eq!(code("d2.test", RecordType::MX), Some((ResponseCode::ServFail, 0)));
        assert_eq!(code("d3.test", RecordType::MX), None);
        let cut = ask(&table, "d1.test", RecordType::MX, 512).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
    }
}
