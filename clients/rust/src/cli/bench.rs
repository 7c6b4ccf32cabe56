//! `aerie bench`: latency and throughput, as a client sees them.
//!
//! In an open loop, arrivals are a Poisson process by seed and do not wait for the server. Times
//! count from when a request was due, so what a stall delays is not left out of the figures.

mod report;

use std::{
    io::{self, Write as _},
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aerie_client::{Client, Error, Event, Retry, v1};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::{
    signal::ctrl_c,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_stream::StreamExt as _;

use super::ServerArgs;
use report::{Report, Tally};

/// Between two looks at the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Open loop: requests a second, arriving at random
    #[arg(long, value_name = "R", conflicts_with = "streams", value_parser = parse_rate)]
    rate: Option<f64>,

    /// Closed loop: streams at once, each beginning anew when it has ended [default: 1]
    #[arg(long, value_name = "N")]
    streams: Option<NonZeroU32>,

    /// Seconds during which requests begin
    #[arg(long, value_name = "S", default_value = "10", value_parser = parse_seconds)]
    duration: Duration,

    /// Open loop: requests at once; one more waits, and its time counts
    #[arg(long, value_name = "N", default_value = "1024")]
    concurrency_max: NonZeroU32,

    /// Connections to spread the requests over
    #[arg(long, value_name = "N", default_value = "1")]
    connections: NonZeroU32,

    /// Text that every request begins with
    #[arg(long, value_name = "TEXT", default_value = "Once upon a time there was a king")]
    prompt: String,

    /// Tokens that every request asks for
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: u32,

    /// Model to use; the server's first by default
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Of the arrivals and of the draws
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// When requests begin.
enum Load {
    Open { next: Instant, rate: f64, rng: Box<ChaCha8Rng> },
    Closed,
}

/// What one request came to; times from when it was due.
struct Outcome {
    result: Result<(), Error>,
    first_token: Option<Duration>,
    /// Between one delta and the next, with the number of tokens in the latter.
    gaps: Vec<(Duration, u32)>,
    tokens: u64,
    duration: Duration,
}

pub(super) async fn run(server: &ServerArgs, args: Args) -> anyhow::Result<()> {
    let mut clients = Vec::new();
    for _ in 0..args.connections.get() {
        // What fails is to be counted, not to be asked for again.
        clients.push(server.connect().await?.with_retry(Retry::NEVER));
    }
    let bench = Bench { clients, start: start(&args), tokens: Arc::default(), args };
    let report = bench.run(&server.server).await;
    for client in bench.clients {
        client.close().await;
    }
    if bench.args.json {
        serde_json::to_writer_pretty(io::stdout(), &report)?;
        writeln!(io::stdout())?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(())
}

struct Bench {
    args: Args,
    clients: Vec<Client>,
    start: v1::Start,
    /// Tokens received by now, for the progress bar.
    tokens: Arc<AtomicU64>,
}

impl Bench {
    async fn run(&self, address: &str) -> Report {
        let began = now();
        let end = began + self.args.duration;
        let mut load = self.load(began);
        let mut tally = Tally::default();
        let mut running = JoinSet::new();
        let mut n_begun = 0;
        let bar = progress_bar(self.args.duration);
        let mut ticks = interval(PROGRESS_INTERVAL);
        let mut interrupted = pin!(ctrl_c());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            // Every arrival has its time, whether or not there is room for it by then.
            let due = load.due().filter(|due| *due < end);
            let has_room = running.len() < self.concurrency_max();
            tokio::select! {
                Some(outcome) = running.join_next() => {
                    tally.add(outcome.expect("a request does not panic"));
                }
                () = sleep_until(due.unwrap_or(end)), if due.is_some() && has_room => {
                    let due = due.expect("the branch is for arrivals");
                    running.spawn(self.request(n_begun, load.begin(due)));
                    n_begun += 1;
                }
                _ = ticks.tick() => self.show(&bar, began, running.len(), &tally),
                _ = &mut interrupted => break,
            }
            if running.is_empty() && load.due().is_none_or(|due| end <= due) {
                break;
            }
        }
        bar.finish_and_clear();
        Report::new(address, self.mode(), tally, began.elapsed())
    }

    fn load(&self, began: Instant) -> Load {
        match self.args.rate {
            Some(rate) => {
                let rng = Box::new(ChaCha8Rng::seed_from_u64(self.args.seed));
                Load::Open { next: began, rate, rng }
            }
            None => Load::Closed,
        }
    }

    fn concurrency_max(&self) -> usize {
        let max = match (self.args.rate, self.args.streams) {
            (Some(_), _) => self.args.concurrency_max.get(),
            (None, streams) => streams.map_or(1, NonZeroU32::get),
        };
        max as usize
    }

    fn mode(&self) -> String {
        match self.args.rate {
            Some(rate) => format!("open loop, {rate} requests/s, seed {}", self.args.seed),
            None => format!("closed loop, {} streams", self.concurrency_max()),
        }
    }

    /// The `n`-th request.
    fn request(&self, n: u64, due: Instant) -> impl Future<Output = Outcome> + Send + 'static {
        let n_clients = self.clients.len() as u64;
        let client = usize::try_from(n % n_clients).expect("fewer than there are clients");
        let client = self.clients[client].clone();
        let mut start = self.start.clone();
        if let Some(sampling) = &mut start.sampling {
            sampling.seed = Some(self.args.seed.wrapping_add(n));
        }
        let tokens = Arc::clone(&self.tokens);
        async move { request(&client, start, due, &tokens).await }
    }

    fn show(&self, bar: &ProgressBar, began: Instant, n_running: usize, tally: &Tally) {
        let elapsed = began.elapsed();
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        let tokens = self.tokens.load(Ordering::Relaxed) as f64;
        let rate = tokens / elapsed.as_secs_f64();
        let (done, failed) = (tally.completed, tally.failed());
        bar.set_message(format!(
            "{n_running} running, {done} done, {failed} failed, {rate:.0} tokens/s"
        ));
    }
}

impl Load {
    /// When the next request is due; none if nobody knows.
    fn due(&self) -> Option<Instant> {
        match self {
            Self::Open { next, .. } => Some(*next),
            Self::Closed => Some(now()),
        }
    }

    /// Begins the request that was due at `due`, and draws when the next one is.
    fn begin(&mut self, due: Instant) -> Instant {
        if let Self::Open { next, rate, rng } = self {
            // Times between arrivals of a Poisson process are exponential.
            let wait_s = -(1.0 - rng.random::<f64>()).ln() / *rate;
            *next = due + Duration::from_secs_f64(wait_s);
        }
        due
    }
}

async fn request(client: &Client, start: v1::Start, due: Instant, live: &AtomicU64) -> Outcome {
    let mut outcome = Outcome {
        result: Ok(()),
        first_token: None,
        gaps: Vec::new(),
        tokens: 0,
        duration: Duration::ZERO,
    };
    outcome.result = receive(client, start, due, live, &mut outcome).await;
    outcome.duration = due.elapsed();
    outcome
}

async fn receive(
    client: &Client,
    start: v1::Start,
    due: Instant,
    live: &AtomicU64,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let mut generation = client.generate(start).await?;
    let mut last = due;
    while let Some(event) = generation.next().await {
        let Event::Delta(delta) = event? else { continue };
        let n_tokens = u32::try_from(delta.ids.len()).unwrap_or(u32::MAX);
        // Text that was held back for a possible stop string comes without tokens.
        if n_tokens == 0 {
            continue;
        }
        let at = now();
        match outcome.first_token {
            None => outcome.first_token = Some(at - due),
            Some(_) => outcome.gaps.push((at - last, n_tokens)),
        }
        last = at;
        outcome.tokens += u64::from(n_tokens);
        live.fetch_add(u64::from(n_tokens), Ordering::Relaxed);
    }
    Ok(())
}

fn start(args: &Args) -> v1::Start {
    v1::Start {
        model: args.model.clone().unwrap_or_default(),
        prompt: Some(v1::start::Prompt::Text(args.prompt.clone())),
        sampling: Some(v1::Sampling { temperature: 0.8, ..v1::Sampling::default() }),
        max_tokens: args.tokens,
        ..v1::Start::default()
    }
}

fn progress_bar(duration: Duration) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {msg}").expect("the template is valid");
    let length = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ProgressBar::new(length).with_style(style)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if 0.0 < rate && rate <= 1e6 => Ok(rate),
        _ => Err("not a number above 0 and up to 1000000".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if 0.0 < seconds && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds above 0 and up to 86400".to_owned()),
    }
}

/// The clock: measuring it is what this is for.
fn now() -> Instant {
    Instant::now()
}
