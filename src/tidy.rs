//! A test on the tree: the absences that `docs/architecture.md` promises.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file but this one: path below `src/`, and its lines of code without comments.
fn code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found.sort();
    let relative = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    let without_comments =
        |text: String| text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    found
        .iter()
        .map(|path| (relative(path), without_comments(fs::read_to_string(path).unwrap())))
        .filter(|(path, _)| path != "tidy.rs")
        .collect()
}

/// The word stands in no file but those below one of the allowed places.
fn only_in(word: &str, allowed: &[&str]) {
    let offenders: Vec<String> = code()
        .into_iter()
        .filter(|(path, text)| text.contains(word) && !allowed.iter().any(|place| path.starts_with(place)))
        .map(|(path, _)| path)
        .collect();
    assert!(offenders.is_empty(), "{word:?} belongs only in {allowed:?}, but stands in {offenders:?}");
}

#[test]
fn foreign_names_stay_in_their_modules() {
    only_in("glommio::", &["rt/"]);
    only_in("hickory_proto", &["dns/"]);
    only_in("rustls::", &["tls/"]);
    only_in("rustls_pki_types", &["tls/"]);
    only_in("memmap2", &["spool/mapping.rs"]);
}

#[test]
fn unsafe_stands_in_two_files() {
    only_in("unsafe {", &["spool/mapping.rs", "rt/adopt.rs"]);
    only_in("allow(unsafe_code)", &["spool/mapping.rs", "rt/adopt.rs"]);
}

#[test]
fn clocks_and_threads_are_made_in_rt() {
    for word in ["Instant::now", "SystemTime::now", "thread::Builder"] {
        only_in(word, &["rt/"]);
    }
}

#[test]
fn cores_know_no_runtime() {
    let cores = ["smtp/", "sasl/", "schedule/core", "pop3/session", "spool/record", "spool/envelope", "deliver/dsn"];
    for (path, text) in code() {
        if cores.iter().any(|core| path.starts_with(core)) {
            for word in ["crate::rt", "std::net::Tcp", "std::fs", "std::thread"] {
                let production = text.split("#[cfg(test)]").next().unwrap_or("");
                assert!(!production.contains(word), "{path} is a core and must not use {word}");
            }
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, _) in code() {
        let text = fs::read_to_string(root.join(&path)).unwrap();
        assert!(text.starts_with("//!"), "{path} does not open with a //! paragraph");
    }
}
