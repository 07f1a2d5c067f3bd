//! `[admin]`: the HTTP server for health, metrics and the queue.

use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) enabled: bool,
    pub(super) address: Option<Spanned<SocketAddr>>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { enabled: true, address: None }
    }
}

impl Admin {
    pub(super) fn listener(&self) -> Option<SocketAddr> {
        let default = SocketAddr::from(([127, 0, 0, 1], 2580));
        self.enabled.then(|| self.address.as_ref().map_or(default, |address| *address.get_ref()))
    }
}
