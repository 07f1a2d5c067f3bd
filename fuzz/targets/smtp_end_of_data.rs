#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::smtp::data::fuzz_end_of_data(input));
