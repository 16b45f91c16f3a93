//! The rules of the house, checked: which crate may depend on which, how long a file may be, and that the pages name what
//! is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The crates and what each may depend on: the picture in `docs/architecture.md`. Arrows point down only.
const ARROWS: &[(&str, &[&str])] = &[
    ("apimachinery", &[]),
    ("store", &[]),
    ("runtime", &[]),
    ("images", &[]),
    ("network", &[]),
    ("crds", &["apimachinery"]),
    ("apiserver", &["apimachinery", "store"]),
    ("controllers", &["apimachinery", "crds"]),
    ("kubelet-agent", &["apimachinery", "crds", "runtime", "images", "network"]),
    ("bench", &["store"]),
];

/// What one can read in one go. STYLE: past about 600 lines a file wants to be two.
const LONGEST_FILE: usize = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn crates_depend_downwards_only() {
    for (name, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("the crate's manifest");
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        let used: Vec<&str> =
            dependencies.lines().filter_map(|line| line.strip_prefix("proa-")?.split(['.', ' ']).next()).collect();
        for used in used {
            assert!(allowed.contains(&used), "{name} must not depend on {used}");
        }
    }
}

#[test]
fn every_crate_is_on_the_picture() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    let members = workspace.lines().find(|line| line.starts_with("members")).expect("members");
    for name in members.split('"').skip(1).step_by(2) {
        assert!(ARROWS.iter().any(|(known, _)| *known == name), "{name} is not in ARROWS");
    }
}

#[test]
fn a_file_can_be_read() {
    let long: BTreeMap<PathBuf, usize> = sources()
        .map(|path| {
            let lines = fs::read_to_string(&path).expect("a source file").lines().count();
            (path, lines)
        })
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .collect();
    assert!(long.is_empty(), "split these files: {long:#?}");
}

#[test]
fn every_crate_says_what_it_owns_and_what_it_never_does() {
    for (name, _) in ARROWS.iter().filter(|(name, _)| *name != "bench") {
        let text = fs::read_to_string(root().join(name).join("src/lib.rs")).expect("the crate's lib.rs");
        let opening: String =
            text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ").to_lowercase();
        assert!(
            opening.contains("owns") && opening.contains("never"),
            "{name}/src/lib.rs opens without \"owns … / never …\""
        );
    }
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_for_later() {
    let marks =
        ["#[ignore", concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("TO", "DO")];
    for path in sources().filter(|path| !path.ends_with("tests/house.rs")) {
        let text = fs::read_to_string(&path).expect("a source file");
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", path.display());
        }
    }
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_conformance_test_is_stated_by_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/conformance.md")).expect("the page");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| [sig-")).collect();
    let titles: BTreeSet<&str> = rows.iter().filter_map(|row| row.split(" | ").next()).collect();
    assert_eq!((rows.len(), titles.len()), (191, 191), "each once");
    for row in rows {
        let tests: Vec<&str> = quoted(row).collect();
        assert!(!tests.is_empty(), "nothing states {row}");
        for test in tests {
            let (path, name) = test.split_once("::").expect("path::function");
            let text = fs::read_to_string(root().join(path)).unwrap_or_default();
            let head = text.split_once(&format!("fn {name}(")).map(|(head, _)| head);
            let head = head.unwrap_or_else(|| panic!("{path} has no {name}")).trim_end_matches("async ").trim_end();
            // Attributes stand on the line above; in `proptest!` too.
            let attribute = head.lines().next_back().unwrap_or_default();
            assert!(attribute.contains("test") && attribute.trim_start().starts_with("#["), "{test} is no test");
        }
    }
}

/// Alternatives in braces, written out.
fn spelled(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (choices, tail) = rest.split_once('}').expect("a closing brace");
    choices.split(',').map(|choice| format!("{head}{choice}{tail}")).collect()
}

/// Each cell that names a place in the tree names one that is there; a bare file is in a folder the same row names.
#[test]
fn the_architecture_names_places_that_exist() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    let mut seen = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let mut folders: Vec<PathBuf> = Vec::new();
        for name in quoted(row).flat_map(spelled) {
            let name = name.split('*').next().unwrap_or_default();
            let first = name.split('/').next().unwrap_or_default();
            let is_place = name.contains("/src/") && ARROWS.iter().any(|(known, _)| *known == first)
                || name.contains('/') && ["src", "tests", "docs", "manifests"].contains(&first);
            if is_place {
                let path = root().join(name);
                assert!(path.exists(), "{name} is not there: {row}");
                folders.push(if path.is_dir() { path } else { path.parent().expect("a folder").to_owned() });
                seen += 1;
            } else if name.ends_with(".rs") && !name.contains('/') {
                assert!(folders.iter().any(|folder| folder.join(name).exists()), "{name} is not there: {row}");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "the tables are read: {seen}");
}

fn sources() -> impl Iterator<Item = PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.into_iter()
}
