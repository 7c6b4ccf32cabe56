//! A server of its own for a test: the real program, started, asked, stopped and killed.
//!
//! What is spawned is what users run, so these are the only tests that wait for the clock.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use aerie_client::{Client, Retry, Trust};
use tempfile::TempDir;

/// How long a program may take to start or stop, in steps of [`POLL`]; a machine under load is slow.
const POLLS_MAX: u32 = 1200;
const POLL: Duration = Duration::from_millis(50);

/// Lets the system choose the port.
const ANY_PORT: &str = "127.0.0.1:0";

/// A server on free ports with a folder of its own.
#[derive(Debug)]
pub struct Server {
    bundle: PathBuf,
    flags: Vec<String>,
    folder: TempDir,
    process: Child,
    addresses: Vec<String>,
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wire {
    Grpc,
    Quic,
}

impl Server {
    /// Starts a server of `bundle` and waits until it is ready.
    pub fn start(bundle: &Path, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let flags: Vec<_> = flags.iter().map(|it| (*it).to_owned()).collect();
        let process = spawn(bundle, &flags, folder.path(), &[ANY_PORT; 2].map(str::to_owned));
        let mut server =
            Self { bundle: bundle.to_owned(), flags, folder, process, addresses: Vec::new() };
        server.await_ready();
        server
    }

    /// Connects a client over `wire` that asks everything once.
    pub async fn client(&self, wire: Wire) -> Client {
        self.patient_client(wire).await.with_retry(Retry::NEVER)
    }

    /// Connects a client over `wire` that asks again as clients do.
    pub async fn patient_client(&self, wire: Wire) -> Client {
        let trust = Trust::Certificate(self.certificate());
        Client::connect(self.address(wire.scheme()), &trust).await.expect("the server is ready")
    }

    /// The address with `scheme`, as in `quic://127.0.0.1:40000`.
    pub fn address(&self, scheme: &str) -> &str {
        let found = self.addresses.iter().find(|it| it.starts_with(&format!("{scheme}://")));
        found.unwrap_or_else(|| panic!("no {scheme} address in {:?}", self.addresses))
    }

    /// Host and port of the Open Inference Protocol over HTTP, where `--rest` asks for it.
    pub fn rest_authority(&self) -> &str {
        let found = self.addresses.iter().find_map(|it| it.strip_suffix("/v2"));
        let address = found.unwrap_or_else(|| panic!("no such address in {:?}", self.addresses));
        address.trim_start_matches("https://").trim_start_matches("http://")
    }

    /// The certificate that the server generated.
    pub fn certificate(&self) -> PathBuf {
        self.data_dir().join("tls/certificate.pem")
    }

    /// The folder of its sessions, its key and its certificate.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The system's name of the process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Resident memory of the process in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.process.id());
        let statm = fs::read_to_string(path).expect("the server runs");
        let pages: u64 = statm.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("statm");
        pages * 4096
    }

    /// `kill -9`, and a new process on the same folder.
    pub fn kill_and_restart(&mut self) {
        self.process.kill().expect("the server runs");
        self.process.wait().expect("the server is our child");
        self.restart();
    }

    /// Sends the process a signal, as in `HUP`.
    pub fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.process.id().to_string());
        let killed = Command::new("kill").args([&signal, &pid]).status().expect("kill is there");
        assert!(killed.success(), "kill {signal} {pid}: {killed}");
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        for _ in 0..POLLS_MAX {
            if holds().await {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("{what}, but not in time:\n{}", self.log());
    }

    /// SIGTERM, and what the process says when it is gone.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    /// What the process says when it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        for _ in 0..POLLS_MAX {
            if let Some(status) = self.process.try_wait().expect("the server is our child") {
                return status;
            }
            thread::sleep(POLL);
        }
        panic!("the server did not stop:\n{}", self.log());
    }

    /// A new process on the same folder and the same ports, after [`Server::terminate`].
    pub fn restart(&mut self) {
        fs::remove_file(self.addresses_path()).expect("the server wrote its addresses");
        // As in `grpc://127.0.0.1:40000`; gRPC may have TLS.
        let port = |scheme: &str| {
            let mut addresses = self.addresses.iter().filter(|it| it.starts_with(scheme));
            let address = addresses.next().expect("the server told all of its addresses");
            address.rsplit_once('/').expect("it is a URL").1.to_owned()
        };
        let ports = [port("grpc"), port("quic")];
        self.process = spawn(&self.bundle, &self.flags, self.folder.path(), &ports);
        self.await_ready();
    }

    /// What `/metrics` tells.
    pub fn metrics(&self) -> String {
        let authority = self.address("http").trim_start_matches("http://");
        let mut stream = TcpStream::connect(authority).expect("the server is ready");
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server answers in text");
        answer
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn addresses_path(&self) -> PathBuf {
        self.folder.path().join("addresses")
    }

    fn await_ready(&mut self) {
        for _ in 0..POLLS_MAX {
            let text = fs::read_to_string(self.addresses_path()).unwrap_or_default();
            self.addresses = text.lines().map(str::to_owned).collect();
            if 3 <= self.addresses.len() && text.ends_with('\n') {
                return;
            }
            if let Some(status) = self.process.try_wait().expect("the server is our child") {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            thread::sleep(POLL);
        }
        panic!("the server was not ready in time:\n{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already, if the test terminated it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Wire {
    pub const BOTH: [Self; 2] = [Self::Grpc, Self::Quic];

    pub fn scheme(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
        }
    }
}

/// The program `name` of this workspace, built beside the running test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let path = test.ancestors().nth(2).expect("tests are in target/<profile>/deps").join(name);
    assert!(path.exists(), "{} is missing: `make test` builds it", path.display());
    path
}

/// A bundle of the `tiny` preset with random weights, emitted into `folder`.
pub fn tiny_bundle(folder: &Path) -> PathBuf {
    seeded_bundle(folder, 1)
}

/// The same with other weights for every `seed`.
pub fn seeded_bundle(folder: &Path, seed: u64) -> PathBuf {
    random_bundle(folder, "tiny", &["--seed", &seed.to_string()])
}

/// A bundle of `preset` with random weights, which is called so too, emitted with `flags` into `folder`.
pub fn random_bundle(folder: &Path, preset: &str, flags: &[&str]) -> PathBuf {
    let bundle = folder.join(preset);
    let output = Command::new(program("aerie-export"))
        .args(["emit", "--random", preset, "--name", preset])
        .args(flags)
        .arg("--out")
        .arg(&bundle)
        .output()
        .expect("aerie-export runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle
}

fn spawn(bundle: &Path, flags: &[String], folder: &Path, [grpc, quic]: &[String; 2]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let log = log.expect("the folder is ours");
    Command::new(program("aerie-serve"))
        .arg("--model")
        .arg(bundle)
        .arg("--data")
        .arg(folder.join("data"))
        .arg("--addresses")
        .arg(folder.join("addresses"))
        .args(["--grpc", grpc, "--quic", quic, "--http", ANY_PORT])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("aerie-serve can be run")
}
