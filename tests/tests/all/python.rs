//! The operator library as other hosts see it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Goal: `libaerie_ops.so` is whole without our server around it.
/// Method: Python's runtime loads it and compares each operator with numpy; see the script.
#[test]
fn pythons_runtime_loads_the_library_and_agrees_with_numpy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".deps/venv/bin/python");
    if !python.exists() {
        println!("skipped: {} is not there", python.display());
        return;
    }
    let output = Command::new(python)
        .arg(root.join("tests/python/ops_parity.py"))
        .arg(library(root))
        .output()
        .unwrap();
    let (text, errors) = (output.stdout, output.stderr);
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&text),
        String::from_utf8_lossy(&errors)
    );
}

/// The shared library. A test's own build makes it without a fixed place for it, so this asks cargo,
/// which has nothing left to compile.
fn library(root: &Path) -> PathBuf {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["build", "--package", "aerie-ops", "--lib", "--message-format", "json", "--quiet"])
        .current_dir(root)
        .output()
        .unwrap();
    let messages = String::from_utf8(output.stdout).unwrap();
    let name = "libaerie_ops.so\"";
    let line = messages.lines().find(|line| line.contains(name));
    let line = line.unwrap_or_else(|| panic!("no library in {messages}"));
    let end = line.find(name).unwrap() + name.len() - 1;
    let start = line[..end].rfind('"').unwrap() + 1;
    PathBuf::from(&line[start..end])
}
