#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::smtp::client::fuzz::fuzz_session(input));
