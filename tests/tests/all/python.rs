//! The operator library and exported graphs as other hosts see them, beside what others compute; and our client in
//! Python.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aerie_tests::server::{Server, program, tiny_bundle};

const PROMPT: &str = "Once upon a time there was a little girl who lived in a wood.";

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

/// Goal: the Python client is what its own tests say, and what its types say.
#[test]
fn our_client_in_python_passes_its_own_tests() {
    let Some(python) = python("venv") else { return };
    let cache = tempfile::tempdir().unwrap();
    let package = root().join("clients/python");
    let modules: [&[&str]; 2] =
        [&["pytest", "--quiet", "tests"], &["mypy", "--strict", "aerie", "tests", "messages.py"]];
    for module in modules {
        let mut command = client_in_python(&python, &package);
        succeed(command.arg("-m").args(module).env("MYPY_CACHE_DIR", cache.path()));
    }
}

/// Goal: what pip makes of the folder is whole, also without the folder.
#[test]
fn our_client_in_python_can_be_installed() {
    let Some(python) = python("venv") else { return };
    let folder = tempfile::tempdir().unwrap();
    // As tests/setup/python.sh does it: the environment has no pip of its own. What builds the package it has.
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "--python"]).arg(&python);
    pip.args(["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target"]);
    succeed(pip.arg(folder.path()).arg(root().join("clients/python")));
    let mut command = client_in_python(&python, folder.path());
    // Elsewhere than in the folder, which Python would look into first.
    succeed(command.args(["-m", "aerie", "--help"]).current_dir(folder.path()));
    for file in ["py.typed", "v1/__init__.pyi"] {
        assert!(folder.path().join("aerie").join(file).exists(), "{file}");
    }
}

/// Goal: the Python client tells every token once, whatever happens to the real server, and makes every call.
/// Method: see the script. It asks for `kill -9`, here, and goes on.
#[test]
fn our_client_in_python_does_not_notice_kill_9() {
    let Some(python) = python("venv") else { return };
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let mut server = Server::start(&bundle, &[]);
    let address = server.address("grpc").to_owned();
    talk(&python, &mut server, &[&address]);
}

/// Goal: the same with TLS, a certificate of the client's, and tokens.
#[test]
fn our_client_in_python_shows_who_it_is() {
    let Some(python) = python("venv") else { return };
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let ours = super::security::authority(folder.path(), "ours");
    let (tokens, [token, ..]) = super::security::tokens(folder.path());
    let [ca, tokens] = [&ours.ca, &tokens].map(|it| it.to_str().unwrap());
    let flags = ["--grpc-tls", "--client-ca", ca, "--tokens", tokens];
    let mut server = Server::start(&bundle, &flags);
    let address = server.address("grpcs").to_owned();
    let paths = [&server.certificate(), &ours.client.certificate, &ours.client.key];
    let [trusted, shown, key] = paths.map(|it| it.to_str().unwrap().to_owned());
    let flags = ["--certificate", &trusted, "--client-certificate", &shown, &key];
    talk(&python, &mut server, &[&[&*address], &flags[..], &["--token", &token]].concat());
}

/// Runs the client's script against `server`, and kills the server whenever it asks for that.
#[track_caller]
fn talk(python: &Path, server: &mut Server, arguments: &[&str]) {
    let package = root().join("clients/python");
    let mut command = client_in_python(python, &package);
    let (address, flags) = arguments.split_first().unwrap();
    command.arg("tests/against_server.py").args([address, PROMPT]).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut kills = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        assert_eq!(line.unwrap(), "kill");
        server.kill_and_restart();
        kills += 1;
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(kills, 8, "four for each of two clients");
}

/// Python in the folder of the client, with `package` to import it from.
fn client_in_python(python: &Path, package: &Path) -> Command {
    let mut command = Command::new(python);
    command.current_dir(root().join("clients/python"));
    command.env("PYTHONPATH", package).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    assert!(output.status.success(), "{command:?}:\n{}", text.join("\n"));
    let [printed, _] = text;
    printed
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
    succeed(Command::new(python).arg(script).args(arguments));
}

/// The same, and what it prints.
#[track_caller]
pub(super) fn script(python: &Path, script: &str, arguments: &[&str]) -> String {
    let script = root().join("tests/python").join(script);
    succeed(Command::new(python).arg(script).args(arguments))
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
