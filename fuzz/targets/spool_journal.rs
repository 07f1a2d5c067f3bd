#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::spool::fuzz_replay(input));
