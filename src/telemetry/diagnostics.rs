//! Remarks of the program itself (`tracing`) as lines of the event log, so that they too never hold up an executor and
//! no foreign octet can forge a line.
//!
//! `RINGMAIL_LOG` chooses what is said, e.g. `debug` or `ringmail::dns=trace,warn`; default `warn,ringmail=info`.

use super::event::{Event, EventLog};
use std::fmt::Write;
use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The environment variable that chooses what is said.
pub const FILTER_VARIABLE: &str = "RINGMAIL_LOG";
const FILTER_DEFAULT: &str = "warn,ringmail=info";
/// Octets of one remark; the rest is cut off.
const TEXT_BYTES_MAX: usize = 2_000;

/// Sends every remark of the process to the log from now on. Only the first call counts.
pub fn install(log: EventLog) {
    let wanted = std::env::var(FILTER_VARIABLE).ok();
    let (filter, mistake) = match wanted.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(FILTER_DEFAULT), Some(error)),
        None => (EnvFilter::new(FILTER_DEFAULT), None),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(DiagnosticLayer(log));
    // Fails only when a subscriber is there already (tests).
    let _ = tracing::subscriber::set_global_default(subscriber);
    if let Some(error) = mistake {
        tracing::warn!("{FILTER_VARIABLE} is not understood, {FILTER_DEFAULT} is used: {error}");
    }
}

struct DiagnosticLayer(EventLog);

impl<S: Subscriber> Layer<S> for DiagnosticLayer {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut text = text.message + &text.details;
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        self.0.log(Event::Diagnostic { level, module: event.metadata().target(), text });
    }
}

/// The message, followed by ` key=value` for every other field.
#[derive(Default)]
struct Text {
    message: String,
    details: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.details, " {name}={value:?}"),
        };
        written.expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_become_lines() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (log, thread) = EventLog::start(writer).unwrap();
        let subscriber = tracing_subscriber::registry().with(DiagnosticLayer(log));
        tracing::subscriber::with_default(subscriber, || tracing::warn!(shard = 3, "disk is\nfull"));
        thread.finish();
        let text = std::io::read_to_string(reader).unwrap();
        let (_, line) = text.split_once("Z ").unwrap();
        assert_eq!(line, "warn module=ringmail::telemetry::diagnostics::tests text=\"disk is\\nfull shard=3\"\n");
    }
}
