//! What the receiving cores cost without any I/O: commands per second of the session, octets per second of end-of-data.
//!
//! `cargo bench --bench smtp [-- ROUNDS]`: each case is run ROUNDS times (default 15), in turns with the others, and the
//! median is printed. One thread. A message is 4 KiB of lines of 76 octets, as text and base64 are.

use ringmail::smtp::chunk::{ChunkReceiver, Content};
use ringmail::smtp::data::{EndOfData, LineEndings, MessageReceiver, Received};
use ringmail::smtp::server::{AuthOffer, Event, Peer, Session, SessionConfig};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const MESSAGE_BYTES: usize = 4096;
const REPEATS: usize = 20_000;

/// A case: its name, what one repetition counts for, its unit, and the work.
struct Case {
    name: &'static str,
    amount: f64,
    unit: &'static str,
    run: Box<dyn FnMut()>,
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(15);
    let mut cases = cases();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (case, times) in cases.iter_mut().zip(&mut times) {
            let begun = cpu_time();
            for _ in 0..REPEATS {
                (case.run)();
            }
            times.push((cpu_time() - begun).as_secs_f64() / REPEATS as f64);
        }
    }
    for (case, times) in cases.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        println!("{:<44} {:>8.0} ns {:>9.2} {}", case.name, median * 1e9, case.amount / median, case.unit);
    }
}

/// Processor time of this thread: others may use the machine at the same time.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn cases() -> Vec<Case> {
    let line = [&[b'x'; 76][..], b"\r\n"].concat();
    let mut body = line.repeat(MESSAGE_BYTES / line.len());
    body.extend_from_slice(&vec![b'y'; MESSAGE_BYTES - body.len() - 2]);
    body.extend_from_slice(b"\r\n");
    let data = [&body[..], b".\r\n"].concat();
    let gigabytes = MESSAGE_BYTES as f64 / 1e9;
    let case = |name, amount, unit, run| Case { name, amount, unit, run };
    let (scanned, received, chunked) = (data.clone(), data.clone(), body.clone());
    vec![
        case(
            "end-of-data scan, 4 KiB",
            gigabytes,
            "GB/s",
            Box::new(move || {
                assert!(EndOfData::default().scan(black_box(&scanned)).is_some());
            }),
        ),
        case(
            "end-of-data scan and copy, 4 KiB",
            gigabytes,
            "GB/s",
            Box::new(move || {
                let mut receiver = MessageReceiver::new(1 << 20, LineEndings::Strict);
                receiver.receive(black_box(&received));
                assert!(matches!(receiver.finish(), Received::Message { .. }));
            }),
        ),
        case(
            "chunk scan and copy, 4 KiB",
            gigabytes,
            "GB/s",
            Box::new(move || {
                let mut receiver = ChunkReceiver::new(1 << 20, Content::Lines(LineEndings::Strict));
                receiver.receive(black_box(&chunked));
                assert!(matches!(receiver.finish(), Received::Message { .. }));
            }),
        ),
        transaction("transaction by DATA with 4 KiB", &[b"DATA\r\n", &data[..]].concat()),
        transaction("transaction by BDAT with 4 KiB", &[b"BDAT 4096 LAST\r\n", &body[..]].concat()),
        commands(),
    ]
}

const ENVELOPE: &[u8] = b"MAIL FROM:<sender@client.example> SIZE=4096\r\nRCPT TO:<recipient@far.example>\r\n";

fn session() -> Session {
    // One session says it all.
    let config =
        SessionConfig { auth: AuthOffer::Never, dsn: true, commands_max: usize::MAX, ..SessionConfig::default() };
    let mut session = Session::new(Arc::new(config), Peer::stranger(([192, 0, 2, 1], 4711).into()), false);
    session.handle_input(b"EHLO client.example\r\n");
    session.clear_output();
    session
}

/// MAIL, RCPT and the message in one read, everything that the core does for it: parsing, scanning, replies.
fn transaction(name: &'static str, message: &[u8]) -> Case {
    let mut session = session();
    let input = [ENVELOPE, message].concat();
    let run = Box::new(move || play(&mut session, black_box(&input)));
    Case { name, amount: MESSAGE_BYTES as f64 / 1e9, unit: "GB/s of content", run }
}

fn commands() -> Case {
    let mut session = session();
    let input = [ENVELOPE, b"RSET\r\nNOOP\r\n"].concat();
    Case {
        name: "MAIL, RCPT, RSET, NOOP",
        amount: 4.0 / 1e6,
        unit: "million commands/s",
        run: Box::new(move || {
            play(&mut session, black_box(&input));
        }),
    }
}

fn play(session: &mut Session, mut input: &[u8]) {
    loop {
        input = &input[session.handle_input(input)..];
        match session.take_event() {
            Some(Event::Mail { .. }) => session.mail_result(Ok(())),
            Some(Event::Rcpt) => session.rcpt_taken(),
            Some(Event::Data) => {
                let mut receiver = MessageReceiver::new(1 << 20, LineEndings::Strict);
                let end = receiver.receive(input).expect("the whole message is there");
                input = &input[end..];
                assert!(matches!(receiver.finish(), Received::Message { .. }));
                session.message_result(Ok("0000000G0001"));
            }
            Some(Event::Chunk { octets, .. }) => {
                let mut receiver = ChunkReceiver::new(1 << 20, session.content());
                let (chunk, rest) = input.split_at(octets as usize);
                receiver.receive(chunk);
                input = rest;
                assert!(matches!(receiver.finish(), Received::Message { .. }));
                session.message_result(Ok("0000000G0001"));
            }
            Some(event) => panic!("{event:?}"),
            None => break,
        }
    }
    assert!(input.is_empty() && !session.is_closed());
    session.clear_output();
}
