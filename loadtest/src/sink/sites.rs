//! The sink's configuration file: sites, their addresses, their behaviour.

use super::behaviour::Behaviour;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// One site: hosts that share a behaviour and its memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// For the counts.
    pub name: String,
    /// Where its hosts listen; empty for a site whose hosts are down.
    pub addresses: Vec<SocketAddr>,
    /// What it does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub behaviour: Behaviour,
}

fn is_default(behaviour: &Behaviour) -> bool {
    *behaviour == Behaviour::default()
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    /// `[[site]]`.
    pub site: Vec<SiteConfig>,
}

/// Reads and checks the file.
pub fn read(path: &Path) -> io::Result<Vec<SiteConfig>> {
    let at = |reason: String| io::Error::other(format!("{}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
    parse(&text).map_err(at)
}

fn parse(text: &str) -> Result<Vec<SiteConfig>, String> {
    let config: SinkConfig = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut taken = HashSet::new();
    for site in &config.site {
        site.behaviour.check().map_err(|reason| format!("site {:?}: {reason}", site.name))?;
        if let Some(twice) = site.addresses.iter().find(|address| !taken.insert(**address)) {
            return Err(format!("site {:?}: {twice} belongs to a site already", site.name));
        }
    }
    Ok(config.site)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_read_and_mistakes_named() {
        let good = "[[site]]\nname = \"a\"\naddresses = [\"127.9.0.1:25\"]\nbehaviour = { defer_share = 0.5 }\n";
        assert_eq!(parse(good).unwrap()[0].behaviour.defer_share, 0.5);
        for (bad, says) in [
            (good.replace("0.5", "1.5"), "from 0 to 1"),
            (good.replace("defer_share", "defershare"), "defershare"),
            (format!("{good}{good}"), "belongs to a site already"),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
