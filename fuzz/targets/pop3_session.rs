#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::pop3::session::fuzz_session(input));
