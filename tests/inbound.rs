//! The receiving parsers from outside: fuzz bodies over their corpora, a differential run against another parser, and the
//! conformance table of `docs/smtp.md` against the tests that it names.

#[path = "inbound/conformance.rs"]
mod conformance;
#[path = "inbound/differential.rs"]
mod differential;
#[path = "inbound/fuzz.rs"]
mod fuzz;
