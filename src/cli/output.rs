//! Printing that cannot panic. Rust's own `println!` does when the reader went (`ringmail queue list | head`) or the disk
//! is full; the macros here stand in its place in all modules of the command line.

use super::exit;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process;

/// As the one of the standard library, but for errors: see [`end_if_unwritten`].
macro_rules! println {
    () => { println!("") };
    ($($argument:tt)*) => { $crate::cli::output::out(format_args!($($argument)*), "\n") };
}

/// The same without a line end.
macro_rules! print {
    ($($argument:tt)*) => { $crate::cli::output::out(format_args!($($argument)*), "") };
}

/// As the one of the standard library; what cannot be written is lost, for there is nobody to tell.
macro_rules! eprintln {
    () => { eprintln!("") };
    ($($argument:tt)*) => { $crate::cli::output::err(format_args!($($argument)*), "\n") };
}

/// The same without a line end.
macro_rules! eprint {
    ($($argument:tt)*) => { $crate::cli::output::err(format_args!($($argument)*), "") };
}

pub(super) fn out(text: Arguments<'_>, end: &str) {
    let mut output = io::stdout().lock();
    end_if_unwritten(write!(output, "{text}{end}").and_then(|()| output.flush()));
}

pub(super) fn err(text: Arguments<'_>, end: &str) {
    let mut output = io::stderr().lock();
    let _ = write!(output, "{text}{end}").and_then(|()| output.flush());
}

/// Ends the process where standard output takes nothing more: with 0 when its reader has seen enough, else with 74.
fn end_if_unwritten(written: io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        process::exit(0);
    }
    err(format_args!("ringmail: cannot write to standard output: {error}"), "\n");
    process::exit(exit::IO.into());
}
