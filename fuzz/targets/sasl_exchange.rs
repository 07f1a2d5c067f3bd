#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::sasl::server::fuzz_exchange(input));
