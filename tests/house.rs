//! The rules of the house, checked: which crate may depend on which, and how long a file may be.

use std::collections::BTreeMap;
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
    ("bench", &[]),
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
