//! `DATA/greylist`: what greylisting remembers, over a restart. Read at the start, written aside and renamed about once a
//! minute where something has changed, and at the stop; a crash costs those who came in its last minute another wait.

use super::Doorman;
use super::greylist::{Began, GREYLIST_BYTES_MAX, Greylist};
use crate::rt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Time from one look at what has changed to the next.
const KEEP_EVERY: Duration = Duration::from_secs(60);

const NAME: &str = "greylist";

/// Reads what is kept in the data folder. What cannot be read or is damaged is told in the log, and nobody is known.
pub fn load(data_dir: &Path) -> Greylist {
    load_at(data_dir, Began { at: rt::now(), unix_s: rt::unix_ms() / 1000 })
}

fn load_at(data_dir: &Path, began: Began) -> Greylist {
    let path = data_dir.join(NAME);
    let problem = match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Greylist::new(began),
        Err(error) => error.to_string(),
        Ok(bytes) => match Greylist::from_bytes(&bytes, began) {
            Some(greylist) => return greylist,
            None => "it is damaged".to_owned(),
        },
    };
    tracing::warn!("greylisting begins anew: {}: {problem}", path.display());
    Greylist::new(began)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(GREYLIST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps what is remembered, about once a minute, for as long as it is polled.
pub async fn keep_always(doorman: Arc<Doorman>, data_dir: PathBuf, pool: rt::HelperPool) {
    loop {
        rt::sleep(KEEP_EVERY).await;
        if doorman.greylist.has_changed() {
            let (doorman, data_dir) = (doorman.clone(), data_dir.clone());
            // Where the pool is busy, the next time.
            let _ = pool.run(move || keep(&data_dir, &doorman.greylist)).await;
        }
    }
}

/// Writes what is remembered, if it has changed: to a new file that is synced and renamed. Takes as long as the disk does:
/// not on a shard. Trouble is told in the log; it costs nobody mail.
pub fn keep(data_dir: &Path, greylist: &Greylist) {
    if !greylist.has_changed() {
        return;
    }
    let path = data_dir.join(NAME);
    if let Err(error) = replace(&path, &greylist.to_bytes()) {
        tracing::warn!("what greylisting remembers cannot be kept: {}: {error}", path.display());
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside: PathBuf = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GreylistConfig;

    #[test]
    fn it_is_kept_and_damage_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let config = GreylistConfig {
            delay: Duration::from_secs(300),
            retry_within: Duration::from_secs(3600),
            lifetime: Duration::from_secs(86_400),
        };
        let began = Began { at: rt::now(), unix_s: 1_800_000_000 };
        let later = Began { unix_s: began.unix_s + 300, ..began };
        let ask = |greylist: &Greylist| {
            greylist.ask("192.0.2.1".parse().unwrap(), "a@x.test", "b@y.test", &config, began.at).is_ok()
        };
        let greylist = load_at(folder.path(), began);
        keep(folder.path(), &greylist);
        assert!(!folder.path().join(NAME).exists(), "there is nothing to keep");
        assert!(!ask(&greylist));
        keep(folder.path(), &greylist);
        assert!(ask(&load_at(folder.path(), later)));

        fs::write(folder.path().join(NAME), b"nonsense").unwrap();
        let anew = load_at(folder.path(), later);
        assert!(!ask(&anew), "nobody is known");
        keep(folder.path(), &anew);
        assert!(!ask(&load_at(folder.path(), later)), "it waits");
    }
}
