#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::dns::wire::fuzz_answer(input));
