//! Every test that the conformance table of `docs/smtp.md` names exists.

use std::fs;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files in which the module of a unit test may stand: `a::b::tests` is in `a/b.rs`, `a/b/mod.rs` or `a/b/tests.rs`.
fn module_files(root: &Path, module: &str) -> Vec<PathBuf> {
    let path = module.replace("::", "/");
    let parent = path.strip_suffix("/tests").expect("unit tests are in a module `tests`");
    ["src/X.rs", "src/X/mod.rs", "src/X/tests.rs"].map(|form| root.join(form.replace('X', parent))).to_vec()
}

fn exists(root: &Path, name: &str) -> bool {
    if let Some((scenario, step)) = name.split_once('.') {
        let text = fs::read_to_string(root.join(format!("tests/{scenario}.py"))).unwrap_or_default();
        return text.contains(&format!("\ndef {step}(box)"));
    }
    let Some((module, function)) = name.rsplit_once("::") else { return false };
    let wanted = format!("#[test]\n    fn {function}()");
    let at_the_left = format!("#[test]\nfn {function}()");
    module_files(root, module).iter().any(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.contains(&wanted) || text.contains(&at_the_left)
    })
}

#[test]
fn every_row_of_the_table_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = read(&root.join("docs/smtp.md"));
    let table = text.split("\n## Conformance\n").nth(1).expect("the section is there");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    let mut missing = Vec::new();
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().expect("a row has columns");
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test in {row}");
        missing.extend(names.into_iter().filter(|name| !exists(root, name)));
    }
    assert_eq!(missing, Vec::<&str>::new(), "tests that do not exist");
    assert!(
        !exists(root, "smtp::data::tests::no_such_test") && !exists(root, "scenario_smtp_conformance.no_such_step")
    );
}
