#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::receive::proxy::fuzz_proxy(input));
