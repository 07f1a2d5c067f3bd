#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::smtp::chunk::fuzz_chunks(input));
