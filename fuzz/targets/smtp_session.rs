#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::smtp::server::fuzz::fuzz_session(input));
