//! Every fuzz target's body over its corpus (`fuzz/corpus/TARGET/`) and a fixed number of mutations of each file: what a
//! fuzzer has found once is never found again by users.

use std::fs;
use std::path::Path;

type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 10] = [
    ("smtp_command", ringmail::smtp::command::fuzz_command),
    ("smtp_path", ringmail::smtp::address::fuzz_path),
    ("smtp_end_of_data", ringmail::smtp::data::fuzz_end_of_data),
    ("smtp_chunks", ringmail::smtp::chunk::fuzz_chunks),
    ("smtp_session", ringmail::smtp::server::fuzz::fuzz_session),
    ("sasl_exchange", ringmail::sasl::server::fuzz_exchange),
    ("proxy_header", ringmail::receive::proxy::fuzz_proxy),
    ("pop3_session", ringmail::pop3::session::fuzz_session),
    ("spool_record", ringmail::spool::fuzz_decode),
    ("spool_journal", ringmail::spool::fuzz_replay),
];

/// Mutations of each file.
const MUTATIONS: u64 = 300;
/// What mutations put in: what parsers look for.
const TOKENS: [&[u8]; 16] = [
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"\0",
    b"<",
    b">",
    b"\"",
    b"\\",
    b"@",
    b"=",
    b" ",
    b"\xff",
    b"BDAT 3 LAST\r\n",
    b".\r\n",
    b"\xe2\x80\xa8",
];

/// Numbers that look random and are the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

fn mutated(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut input = seed.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(input.len() + 1);
        match numbers.below(5) {
            0 if at < input.len() => input[at] = numbers.below(256) as u8,
            1 if at < input.len() => drop(input.remove(at)),
            2 => input.truncate(at),
            3 => {
                let from = numbers.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let token = TOKENS[numbers.below(TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
        }
    }
    input
}

#[test]
fn fuzz_bodies_hold_over_their_corpora_and_what_is_near() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (target, body) in TARGETS {
        assert!(root.join(format!("targets/{target}.rs")).exists(), "{target} has a fuzz target");
        let folder = root.join("corpus").join(target);
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("the folder can be read").path())
            .collect();
        files.sort();
        assert!(files.len() >= 3, "{target} has a corpus");
        let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("it can be read")).collect();
        let mut numbers = Numbers(1);
        for (index, seed) in seeds.iter().enumerate() {
            body(seed);
            let other = &seeds[(index + 1) % seeds.len()];
            for _ in 0..MUTATIONS {
                body(&mutated(seed, other, &mut numbers));
            }
        }
    }
}
