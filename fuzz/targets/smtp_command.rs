#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmail::smtp::command::fuzz_command(input));
