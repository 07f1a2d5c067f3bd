//! A DNS server for tests on 127.0.0.1, on plain threads: it answers from a table, cuts what does not fit a datagram,
//! and misbehaves where it is told to.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What the server knows and how it misbehaves. Names without records do not exist.
#[derive(Default)]
pub struct Zone {
    records: BTreeMap<String, Vec<RData>>,
    delays_ms: BTreeMap<String, u64>,
    codes: BTreeMap<String, u16>,
    deaf: BTreeSet<(String, Option<RecordType>)>,
    liars: BTreeSet<String>,
    no_edns: bool,
    silent_over_tcp: bool,
    queries: AtomicUsize,
    tcp_queries: AtomicUsize,
}

impl Zone {
    pub fn new() -> Zone {
        Zone::default()
    }

    pub fn mx(mut self, domain: &str, preference: u16, host: &str) -> Zone {
        let record = RData::MX(MX::new(preference, absolute(host)));
        self.records.entry(domain.into()).or_default().push(record);
        self
    }

    pub fn address(mut self, host: &str, address: &str) -> Zone {
        let record = match address.parse().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        self.records.entry(host.into()).or_default().push(record);
        self
    }

    /// Answers stop at the alias: the server does not follow it.
    pub fn alias(mut self, name: &str, target: &str) -> Zone {
        self.records.entry(name.into()).or_default().push(RData::CNAME(CNAME(absolute(target))));
        self
    }

    pub fn delay_ms(mut self, name: &str, delay_ms: u64) -> Zone {
        self.delays_ms.insert(name.into(), delay_ms);
        self
    }

    /// Answers with this response code.
    pub fn code(mut self, name: &str, code: u16) -> Zone {
        self.codes.insert(name.into(), code);
        self
    }

    /// Never answers questions for the name.
    pub fn deaf(mut self, name: &str) -> Zone {
        self.deaf.insert((name.into(), None));
        self
    }

    pub fn deaf_for_aaaa(mut self, name: &str) -> Zone {
        self.deaf.insert((name.into(), Some(RecordType::AAAA)));
        self
    }

    /// Sends answers to others, questions and noise before the answer.
    pub fn lies_first(mut self, name: &str) -> Zone {
        self.liars.insert(name.into());
        self
    }

    /// FORMERR to every query with EDNS.
    pub fn no_edns(mut self) -> Zone {
        self.no_edns = true;
        self
    }

    /// Takes queries over TCP and never answers.
    pub fn silent_over_tcp(mut self) -> Zone {
        self.silent_over_tcp = true;
        self
    }

    /// Datagrams received.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    pub fn tcp_queries(&self) -> usize {
        self.tcp_queries.load(Ordering::SeqCst)
    }

    /// The answer and the name asked for; `None` where the server keeps silent.
    fn answer(&self, query: &[u8]) -> Option<(Message, String)> {
        let query = Message::from_vec(query).unwrap();
        let asked = query.queries[0].clone();
        let name = asked.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        if self.deaf.contains(&(name.clone(), None)) || self.deaf.contains(&(name.clone(), Some(asked.query_type()))) {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(asked.clone());
        if self.no_edns && query.edns.is_some() {
            answer.metadata.response_code = ResponseCode::FormErr;
        } else if let Some(&code) = self.codes.get(&name) {
            answer.metadata.response_code = ResponseCode::from(0, code as u8);
        } else {
            match self.records.get(&name) {
                None => answer.metadata.response_code = ResponseCode::NXDomain,
                Some(records) => {
                    let fits = |data: &&RData| {
                        data.record_type() == asked.query_type() || data.record_type() == RecordType::CNAME
                    };
                    let record = |data: &RData| Record::from_rdata(asked.name().clone(), 60, data.clone());
                    answer.insert_answers(records.iter().filter(fits).map(record).collect());
                }
            }
        }
        Some((answer, name))
    }
}

fn absolute(name: &str) -> Name {
    Name::from_str(&format!("{name}.")).unwrap()
}

/// Serves the zone on UDP and TCP of one port until the process ends.
pub fn serve(zone: Arc<Zone>) -> SocketAddr {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        // The port may be taken for TCP: then another one.
        let Ok(tcp) = TcpListener::bind(address) else { continue };
        let udp_zone = zone.clone();
        start(move || serve_udp(&udp, &udp_zone));
        start(move || serve_tcp(&tcp, &zone));
        return address;
    }
}

#[expect(clippy::disallowed_methods, reason = "a server beside the program, for tests")]
fn start(main: impl FnOnce() + Send + 'static) {
    std::thread::spawn(main);
}

fn serve_udp(socket: &UdpSocket, zone: &Zone) {
    let mut buffer = [0; 4096];
    loop {
        let (octets, from) = socket.recv_from(&mut buffer).unwrap();
        zone.queries.fetch_add(1, Ordering::SeqCst);
        let Some((answer, name)) = zone.answer(&buffer[..octets]) else { continue };
        if let Some(&delay_ms) = zone.delays_ms.get(&name) {
            std::thread::sleep(Duration::from_millis(delay_ms));
        }
        if zone.liars.contains(&name) {
            for lie in lies(&answer) {
                socket.send_to(&lie, from).unwrap();
            }
        }
        let mut bytes = answer.to_vec().unwrap();
        if bytes.len() > usize::from(super::wire::UDP_PAYLOAD_OCTETS) {
            let mut cut = answer.clone();
            cut.answers.clear();
            cut.metadata.truncation = true;
            bytes = cut.to_vec().unwrap();
        }
        // The asker may be gone by now.
        let _ = socket.send_to(&bytes, from);
    }
}

/// What must not be believed: each carries a wrong record, or none at all.
fn lies(answer: &Message) -> Vec<Vec<u8>> {
    let lie = |change: &dyn Fn(&mut Message)| {
        let mut lie = answer.clone();
        let owner = answer.queries[0].name().clone();
        lie.answers = vec![Record::from_rdata(owner, 60, RData::MX(MX::new(1, absolute("evil.example"))))];
        change(&mut lie);
        lie.to_vec().unwrap()
    };
    vec![
        lie(&|lie| lie.metadata.id ^= 1),
        lie(&|lie| lie.metadata.message_type = MessageType::Query),
        lie(&|lie| lie.queries = vec![Query::query(absolute("evil.example"), RecordType::MX)]),
        lie(&|lie| lie.queries.clear()),
        vec![0xff; 300],
        vec![1],
        Vec::new(),
    ]
}

fn serve_tcp(listener: &TcpListener, zone: &Zone) {
    let mut held = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        zone.tcp_queries.fetch_add(1, Ordering::SeqCst);
        if zone.silent_over_tcp {
            held.push(stream);
            continue;
        }
        // A client that breaks off is its own affair.
        let _ = answer_tcp(&mut stream, zone);
    }
}

fn answer_tcp(stream: &mut TcpStream, zone: &Zone) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut query)?;
    if let Some((answer, _)) = zone.answer(&query) {
        let bytes = answer.to_vec().unwrap();
        // In two pieces, so that the reader has to put them together.
        let framed = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
        let (one, other) = framed.split_at(1);
        stream.write_all(one)?;
        stream.write_all(other)?;
    }
    Ok(())
}
