//! The soak: far more sessions than lanes, both transports, and a server that is killed again and again, while every
//! token is held to what an undisturbed server says and the server's memory is watched.
//!
//! `make soak` runs it. The environment tells for how long (`AERIE_SOAK_SECONDS`, 600), by which seed (`_SEED`), with
//! which `_DURABILITY`, `_MODEL`, `_CLIENTS` and `_SESSIONS`, on which `_DEVICES`, and where samples and picture go (`_OUT`).

mod audit;
mod caretaker;
mod listen;
mod report;
mod script;
mod settings;
mod surprise;
mod town;
mod visitor;

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use aerie_client::{Client, Retry};
use aerie_serve::text::Tokenizer;
use aerie_tests::server::{Server, Wire};
use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use caretaker::{Caretaker, Watch};
use listen::PATIENCE;
use report::Report;
use script::Script;
use settings::Settings;
use town::{Limits, Town};
use visitor::Visitor;

/// Scripts that sessions follow.
const SCRIPTS: usize = 24;
/// Where nobody looks, a line this often is enough.
const LINE_INTERVAL_S: u64 = 30;
/// Parts of the run: faults come in the first of two.
const FAULTS_SHARE: f64 = 0.5;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let settings = Settings::from_env()?;
    fs::create_dir_all(&settings.out)?;
    let mut stderr = io::stderr();
    writeln!(
        stderr,
        "soak: seed {}, {} s, {}",
        settings.seed,
        settings.run.as_secs(),
        settings.durability
    )?;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed.into());
    let scripts = take_scripts(&settings.model, &mut rng).await?;
    let town = Arc::new(Town::new(scripts, limits(&settings)));
    let config = settings.out.join("aerie.toml");
    fs::write(&config, settings.server())?;
    let config = config.to_str().context("AERIE_SOAK_OUT is not UTF-8")?.to_owned();
    let model = settings.model.clone();
    let mut flags = vec!["--config", &config, "--log", "warn"];
    flags.extend(settings.devices.iter().flat_map(|device| ["--device", device]));
    let server = Server::start(&model, &flags);
    let mut visitors = JoinSet::new();
    for _ in 0..settings.visitors {
        let clients = [patient(&server, Wire::Grpc).await, patient(&server, Wire::Quic).await];
        let rng = ChaCha8Rng::seed_from_u64(rng.next_u64());
        visitors.spawn(Visitor { town: Arc::clone(&town), clients, rng }.stay());
    }
    let began = Instant::now();
    let caretaker = Caretaker {
        server,
        rng: ChaCha8Rng::seed_from_u64(rng.next_u64()),
        began,
        calm_from: settings.run.mul_f64(FAULTS_SHARE),
        life_s: 4.0..20.0,
        watch: Watch::default(),
    };
    let care = {
        let town = Arc::clone(&town);
        thread::spawn(move || caretaker.stay(&town))
    };
    show(&town, settings.run, || care.is_finished()).await?;
    town.end();
    while let Some(left) = visitors.join_next().await {
        left.context("a visitor")?;
    }
    let (server, watch) = care.join().map_err(|_| anyhow!("the server did not come back"))?;
    let seconds = began.elapsed().as_secs_f64();
    let audited = audit::read_all(&town, &patient(&server, Wire::Quic).await).await;
    let report = Report { town: &town, watch: &watch, seconds, audited };
    conclude(&report, &server, &settings.out)
}

/// Says what came of it, and whether that is good.
fn conclude(report: &Report<'_>, server: &Server, out: &Path) -> anyhow::Result<ExitCode> {
    report.write_samples(&out.join("samples.csv"))?;
    report.draw(&out.join("memory.svg"))?;
    let mut stdout = io::stdout().lock();
    write!(stdout, "{report}")?;
    writeln!(stdout, "samples.csv and memory.svg are in {}", out.display())?;
    let mut wrong = report.town.surprises();
    wrong.extend(report.growth());
    for what in &wrong {
        writeln!(stdout, "SURPRISE: {what}")?;
    }
    if wrong.is_empty() {
        writeln!(stdout, "no surprise")?;
        return Ok(ExitCode::SUCCESS);
    }
    fs::write(out.join("server.log"), server.log())?;
    writeln!(stdout, "{} surprises, seed {}", wrong.len(), report.town.limits.seed)?;
    Ok(ExitCode::FAILURE)
}

/// Has an undisturbed server of its own say every script.
async fn take_scripts(model: &Path, rng: &mut ChaCha8Rng) -> anyhow::Result<Vec<Script>> {
    let alone = Server::start(model, &["--log", "warn"]);
    let client = alone.patient_client(Wire::Grpc).await;
    let vocab = client.models().await?.first().context("it serves a model")?.vocab;
    let vocabulary =
        Tokenizer::parse(&fs::read(model.join("tokenizer.json"))?)?.vocabulary(vocab)?;
    let mut scripts = Vec::new();
    for _ in 0..SCRIPTS {
        scripts.push(Script::take(&client, &vocabulary, rng).await?);
    }
    Ok(scripts)
}

async fn patient(server: &Server, wire: Wire) -> Client {
    server.patient_client(wire).await.with_retry(Retry { patience: Some(PATIENCE) })
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        seed: settings.seed,
        sessions_max: settings.sessions_max().into(),
        devices: settings.devices.clone(),
        idle_max: Duration::from_secs(settings::IDLE_S.into()),
        visitors: settings.visitors.into(),
        // A name that was taken away may still count while the answer is on its way.
        names_max: u64::from(settings.names_max() - settings.visitors),
        guests_max: settings.sessions as usize,
    }
}

/// Shows how it goes until the time is over, or something else is.
async fn show(town: &Town, run: Duration, is_finished: impl Fn() -> bool) -> io::Result<()> {
    let style =
        ProgressStyle::with_template("{elapsed} {bar:30} {msg}").expect("it is well-formed");
    let bar = ProgressBar::new(run.as_secs()).with_style(style);
    let began = Instant::now();
    let mut ticks = interval(Duration::from_secs(1));
    for second in 0.. {
        ticks.tick().await;
        if run <= began.elapsed() || town.is_over() || is_finished() {
            break;
        }
        let count = |it: &std::sync::atomic::AtomicU64| it.load(Ordering::Relaxed);
        let (turns, tokens) = (count(&town.counts.turns), count(&town.counts.tokens));
        let (sessions, surprises) = (town.n_idle(), town.surprises().len());
        let line =
            format!("{sessions} sessions, {turns} turns, {tokens} tokens, {surprises} surprises");
        if bar.is_hidden() && second % LINE_INTERVAL_S == 0 {
            writeln!(io::stderr(), "{second} s: {line}")?;
        }
        bar.set_position(began.elapsed().as_secs());
        bar.set_message(line);
    }
    bar.finish_and_clear();
    Ok(())
}
