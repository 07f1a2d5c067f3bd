//! `[tls]`: certificate and key of the listeners.

use super::error::Problem;
use serde::Deserialize;
use std::path::PathBuf;
use toml::Spanned;

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
}

pub(super) fn tls_files(table: TlsTable) -> Result<TlsFiles, Problem> {
    for path in [&table.certificate, &table.key] {
        if let Err(error) = std::fs::File::open(path.get_ref()) {
            let message = format!("{}: {error}", path.get_ref().display());
            return Err(Problem::new(
                path.span().start,
                message,
                "the file must be readable by the account of ringmail",
            ));
        }
    }
    Ok(TlsFiles { certificate: table.certificate.into_inner(), key: table.key.into_inner() })
}
