//! The operator library and exported graphs as other hosts see them, beside what others compute.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use aerie_tests::server::program;

/// Goal: `libaerie_ops.so` is whole without our server around it.
/// Method: Python's runtime loads it and compares each operator with numpy; see the script.
#[test]
fn pythons_runtime_loads_the_library_and_agrees_with_numpy() {
    let Some(python) = python("venv") else { return };
    run(&python, "ops_parity.py", &[library()]);
}

/// Goal: a checkpoint means the same to us, to Google's code and to transformers where that is right;
/// what it is known to do wrong is still wrong.
/// Method: one model through all of them; see the script. Needs what `make parity` fetches.
#[test]
fn transformers_agrees_with_imported_graphs_but_for_its_known_defects() {
    let Some(python) = python("parity") else { return };
    run(&python, "transformers_parity.py", &[program("aerie-export"), library()]);
}

/// Python of an environment that make puts into `.deps`; without it a test says that it is skipped.
pub(super) fn python(environment: &str) -> Option<PathBuf> {
    let python = root().join(".deps").join(environment).join("bin/python");
    if !python.exists() {
        eprintln!("skipped: {} is not there", python.display());
    }
    python.exists().then_some(python)
}

/// Runs a script of `tests/python`.
#[track_caller]
pub(super) fn run(python: &Path, script: &str, arguments: &[PathBuf]) {
    let script = root().join("tests/python").join(script);
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    assert!(output.status.success(), "{}", text.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The shared library. A test's own build makes it without a fixed place for it, so this asks cargo,
/// which has nothing left to compile.
fn library() -> PathBuf {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["build", "--package", "aerie-ops", "--lib", "--message-format", "json", "--quiet"])
        .current_dir(root())
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
