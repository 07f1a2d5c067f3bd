//! What the service manager is told (sd_notify): ready, stopping, a status line, and the watchdog's pings.
//!
//! Without `NOTIFY_SOCKET` every call does nothing. Each call is one small datagram to a socket that the service manager
//! drains at once.

use sd_notify::NotifyState;
use std::time::Duration;

/// The program serves.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The program reads its configuration anew; [`ready`] ends that.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    // Only Type=notify-reload asks for the time.
    states.extend(NotifyState::monotonic_usec_now().ok());
    send(&states);
}

/// The program began to stop; it may take that long.
pub fn stopping(time: Duration) {
    let extension = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(extension)]);
}

/// Every executor moves.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// A line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&one_line(text))]);
}

/// How often [`watchdog`] must be called at least to stay alive: half of what the service manager asks for; `None`
/// without a watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}

/// States are separated by line ends.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}
