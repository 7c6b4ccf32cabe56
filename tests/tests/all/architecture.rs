//! Holds the invariants of ARCHITECTURE.md and CONTRIBUTING.md: arrows, doors, folders, sizes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Internal crates that each crate may depend on, in code, build and tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("clients/proto", &[]),
    ("clients/rust", &["aerie-proto"]),
    ("export", &["aerie-fuzz", "aerie-models", "aerie-ops"]),
    ("models", &["aerie-fuzz"]),
    ("ops", &["aerie-fuzz"]),
    ("serve", &["aerie-fuzz", "aerie-models", "aerie-ops", "aerie-proto", "aerie-state-cache"]),
    ("state-cache", &[]),
    ("tests/fuzz", &[]),
];

/// Where each foreign library may be named; a path that ends in `/` stands for all below it.
const DOORS: &[(&str, &[&str])] = &[
    ("tch", &["export/benches/scan.rs", "export/src/torch/"]),
    (
        "ort",
        &[
            "export/src/runtime.rs",
            "export/src/runtime/",
            "ops/src/ort.rs",
            "ops/src/ort/",
            "serve/src/device/",
            "tests/src/conformance/runtime.rs",
            "tests/src/readings/portable.rs",
        ],
    ),
    ("parquet", &["export/src/data/images/dataset.rs", "export/src/data/images/dataset/"]),
    ("png", &["models/src/images/preprocessing/picture.rs"]),
    ("zune_jpeg", &["models/src/images/preprocessing/picture.rs"]),
    ("memmap2", &["serve/src/device/files.rs", "state-cache/src/storage.rs"]),
    (
        "quinn",
        &[
            "clients/rust/src/quic.rs",
            "clients/rust/src/quic/",
            "serve/src/transport/quic.rs",
            "serve/src/transport/quic/",
            "serve/src/transport/tests.rs",
            "tests/",
        ],
    ),
    ("prometheus", &["serve/src/telemetry/metrics.rs"]),
];

/// Files that may hold unsafe code.
const UNSAFE: &[&str] = &[
    "export/src/torch/shim.rs",
    "ops/src/isa.rs",
    "ops/src/isa/amx.rs",
    "ops/src/isa/avx2.rs",
    "ops/src/isa/avx512.rs",
    "ops/src/isa/neon.rs",
    "ops/src/isa/neon/dots.rs",
    "ops/src/ort.rs",
    "ops/src/ort/call.rs",
    "ops/src/simd.rs",
    "serve/src/device/files.rs",
    "serve/src/device/ort.rs",
    "serve/tests/allocations.rs",
    "state-cache/tests/memory.rs",
    "state-cache/src/storage.rs",
    "tests/fuzz/src/memory.rs",
];

const TOP_FOLDERS: &[&str] =
    &["clients", "docs", "export", "models", "ops", "serve", "state-cache", "tests"];

const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn crates_depend_along_the_drawn_arrows_only() {
    for (folder, allowed) in ARROWS {
        let text = read(&root().join(folder).join("Cargo.toml"));
        let found: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.split([' ', '=', '.']).next())
            .filter(|name| name.starts_with("aerie-"))
            .collect();
        let allowed: BTreeSet<_> = allowed.iter().copied().collect();
        assert!(found.is_subset(&allowed), "{folder} depends on {found:?}, allowed is {allowed:?}");
    }
}

/// What spoils bytes brings an allocator of its own, which is no product's business.
#[test]
fn fuzzing_is_a_dependency_of_tests_alone() {
    for (folder, _) in ARROWS {
        let text = read(&root().join(folder).join("Cargo.toml"));
        let products = text.split("[dev-dependencies]").next().unwrap_or_default();
        let found = products.lines().find(|it| it.starts_with("aerie-fuzz"));
        assert_eq!(found, None, "{folder}");
    }
}

#[test]
fn foreign_libraries_stay_behind_their_doors() {
    for (library, doors) in DOORS {
        let marks = [format!("{library}::"), format!("use {library};")];
        for (name, text) in sources() {
            let names = [&name, &owner(&name)];
            let behind = doors.iter().any(|door| {
                names.iter().any(|it| it == door) || door.ends_with('/') && name.starts_with(door)
            });
            let line = text.lines().find(|line| marks.iter().any(|mark| names_crate(line, mark)));
            assert!(
                behind || line.is_none(),
                "{name} names {library}: {}",
                line.unwrap_or_default()
            );
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_is_expected() {
    for (name, text) in sources() {
        let line = text.lines().find(|line| {
            let code = line.split("//").next().unwrap_or_default();
            ["{", "fn", "impl"].iter().any(|it| code.contains(&["unsafe", it].join(" ")))
        });
        assert!(
            line.is_none() || UNSAFE.contains(&owner(&name).as_str()),
            "{name}: {}",
            line.unwrap_or_default()
        );
    }
}

#[test]
fn top_level_folders_are_the_ones_of_the_map() {
    for entry in fs::read_dir(root()).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() && !name.starts_with('.') && name != "target" {
            assert!(TOP_FOLDERS.contains(&name.as_str()), "unexpected folder {name}");
        }
    }
}

#[test]
fn every_source_file_says_what_lives_in_it() {
    for (name, text) in sources() {
        if name.contains("/tests/") || name.ends_with("/tests.rs") {
            continue;
        }
        assert!(text.starts_with("//!"), "{name} does not open with //!");
    }
}

#[test]
fn functions_fit_a_screen() {
    for (name, text) in sources() {
        let mut open: Option<(usize, usize, &str)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match open {
                None if starts_function(line.trim_start()) && !line.ends_with(';') => {
                    open = Some((number, indent, line));
                }
                Some((start, at, head)) if indent == at && line.trim_start().starts_with('}') => {
                    let lines = number - start + 1;
                    assert!(lines <= FUNCTION_LINES_MAX, "{name}: {lines} lines in {head}");
                    open = None;
                }
                Some((_, at, _)) if indent == at && line.ends_with(';') => open = None,
                _ => {}
            }
        }
    }
}

#[test]
fn nothing_is_left_to_do_or_ignored() {
    // Assembled here, so that this file does not find itself.
    let marks =
        [["TO", "DO"], ["FIX", "ME"], ["#[ig", "nore"], ["to", "do!("], ["unimpl", "emented!("]];
    for (name, text) in sources() {
        for mark in marks.map(|parts| parts.concat()) {
            assert!(!text.contains(&mark), "{name} contains {mark}");
        }
    }
}

/// The module that a file of tests belongs to; other files belong to themselves.
fn owner(name: &str) -> String {
    name.strip_suffix("/tests.rs").map_or_else(|| name.to_owned(), |it| format!("{it}.rs"))
}

/// Whether `line` has `mark` as a name of its own, outside a comment.
fn names_crate(line: &str, mark: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(mark).any(|(at, _)| {
        !code[..at].ends_with(|it: char| it.is_alphanumeric() || it == '_' || it == ':')
    })
}

fn starts_function(line: &str) -> bool {
    let line = line
        .strip_prefix("pub(crate) ")
        .or_else(|| line.strip_prefix("pub(super) "))
        .unwrap_or(line);
    let mut words = line.split(' ');
    words.find(|word| !["pub", "const", "async", "unsafe", "extern", "\"C\""].contains(word))
        == Some("fn")
}

/// Every Rust source of the workspace as `(path from the root, text)`.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in TOP_FOLDERS {
        walk(&root().join(folder), &mut found);
    }
    assert!(20 < found.len(), "only {} sources found", found.len());
    found
}

fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|it| it.unwrap().path()) {
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, read(&path)));
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
