//! What windows of 8 bits do to a model: perplexity of a text whose sessions are parked and resumed all the time, beside the same
//! sessions that never are, and such that are parked exactly.
//!
//! `cargo bench -p aerie-serve --bench windows -- TEXT [BUNDLE [TOKENS]]`: the bundled model and the whole text, if nothing else is
//! said. The text is cut into sessions of 4096 tokens. All arms of a session take each token in one step of the server's own
//! device; parking goes through the store's codec, but not through its file.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::{env, fs, iter::zip, path::PathBuf, sync::Arc};

use aerie_models::{Manifest, bundle::TOKENIZER_FILE};
use aerie_serve::{
    device::{Batch, Device as _, DeviceSpec, Lane, files::BundleFiles, ort as onnx},
    scheduler,
    sessions::Windows,
    store::Packing,
    text::{Place, Tokenizer},
};

const SESSION_TOKENS: usize = 4096;
/// Sessions that are read at once.
const ABREAST: usize = 8;
/// How states are packed, and after how many tokens each time; the first never is.
const ARMS: [(Windows, u64); 5] = [
    (Windows::Exact, u64::MAX),
    (Windows::Exact, 64),
    (Windows::Q8, 256),
    (Windows::Q8, 16),
    (Windows::Q8, 1),
];

/// What an arm has come to.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    tokens: u64,
    /// Of what the text says next, in nats.
    loss: f64,
    /// Divergences from the arm that is never parked, in nats.
    divergence: f64,
    /// How often another token was the likeliest.
    other_choices: u64,
    /// How often any bit of the logits was another.
    other_bits: u64,
}

struct Reader {
    device: onnx::OrtDevice,
    batch: Batch,
    packings: Vec<Packing>,
    state: Vec<u8>,
    sums: [Sums; ARMS.len()],
}

/// Logits on their way to a distribution.
struct Choice<'a> {
    logits: &'a [f32],
    greatest: f32,
    best: usize,
    /// Logarithm of the sum of the exponentials of all distances to the greatest.
    log_sum: f64,
}

fn main() {
    // Cargo adds a flag of its own.
    let args: Vec<String> = env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let Some(text) = args.first() else {
        println!("a text is missing: cargo bench -p aerie-serve --bench windows -- TEXT");
        return;
    };
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bundles/tales");
    let bundle = PathBuf::from(args.get(1).map_or(bundled, String::as_str));
    let version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
    let manifest: Manifest = Manifest::read(&bundle, version).unwrap();
    let files = Arc::new(BundleFiles::open(&bundle, &manifest).unwrap());
    let tokenizer = Tokenizer::parse(files.bytes(TOKENIZER_FILE)).unwrap();
    let text = fs::read_to_string(text).unwrap();
    let mut tokens = tokenizer.encode(&text, Place::First).unwrap();
    tokens.truncate(args.get(2).map_or(usize::MAX, |it| it.parse().unwrap()));

    let mut reader = Reader::new(&manifest, &files);
    let sessions: Vec<&[u32]> = tokens.chunks(SESSION_TOKENS).collect();
    sessions.chunks(ABREAST).for_each(|sessions| reader.read(sessions));
    println!("windows  parked every  perplexity  KL, mean    other choice  other bits   (tokens)");
    for ((windows, every), sums) in zip(ARMS, reader.sums) {
        let n = sums.tokens as f64;
        let every = if every == u64::MAX { "never".to_owned() } else { every.to_string() };
        println!(
            "{:<7}  {every:>12}  {:>10.4}  {:>10.8}  {:>10.3} %  {:>8.1} %  {:>10}",
            format!("{windows:?}").to_lowercase(),
            (sums.loss / n).exp(),
            sums.divergence / n,
            100.0 * sums.other_choices as f64 / n,
            100.0 * sums.other_bits as f64 / n,
            sums.tokens,
        );
    }
}

impl Reader {
    fn new(manifest: &Manifest, files: &Arc<BundleFiles>) -> Self {
        let lanes = ABREAST * ARMS.len();
        let lanes_max = u32::try_from(lanes).unwrap();
        let config = scheduler::Config { lanes_max, step_tokens_max: lanes_max + 1 };
        let (runtime, spec) = (onnx::Runtime::load().unwrap(), DeviceSpec::default());
        let device = onnx::OrtDevice::load(&runtime, files, manifest, &spec, config).unwrap();
        Self {
            state: vec![0; usize::try_from(device.dims().state_bytes).unwrap()],
            device,
            batch: Batch::with_capacity(lanes, lanes),
            packings: ARMS.map(|(windows, _)| Packing::new(&manifest.layout(), windows)).into(),
            sums: [Sums::default(); ARMS.len()],
        }
    }

    /// Reads sessions token by token.
    fn read(&mut self, sessions: &[&[u32]]) {
        for at in 0..SESSION_TOKENS - 1 {
            let position = at as u64;
            // The last session may end before the others.
            let running = sessions.iter().filter(|tokens| at + 1 < tokens.len());
            let running: Vec<&[u32]> = running.copied().collect();
            self.batch.clear();
            for (session, tokens) in running.iter().enumerate() {
                for (arm, (_, every)) in ARMS.into_iter().enumerate() {
                    let lane = Lane(u32::try_from(session * ARMS.len() + arm).unwrap());
                    if 0 < position && position.is_multiple_of(every) {
                        self.park(lane, arm, position);
                    }
                    self.batch.push(lane, position, [tokens[at]].into_iter());
                }
            }
            if running.is_empty() {
                return;
            }
            let vocab = self.device.dims().vocab as usize;
            let logits = self.device.step(&self.batch).unwrap();
            for (tokens, logits) in zip(running, logits.chunks(vocab * ARMS.len())) {
                let never = Choice::new(&logits[..vocab]);
                for (sums, logits) in zip(&mut self.sums, logits.chunks(vocab)) {
                    sums.add(&never, &Choice::new(logits), tokens[at + 1]);
                }
            }
        }
    }

    /// Parks what is in a lane, and resumes it there.
    fn park(&mut self, lane: Lane, arm: usize, position: u64) {
        self.device.read_lane(lane, &mut self.state);
        let packed = self.packings[arm].pack(position, &self.state).to_vec();
        let show = |at: usize, part: &[u8]| self.device.write_part(lane, at, part);
        assert!(self.packings[arm].unpack(position, &packed, show));
    }
}

impl Sums {
    fn add(&mut self, never: &Choice<'_>, found: &Choice<'_>, next: u32) {
        self.tokens += 1;
        self.loss -= found.log_probability(next as usize);
        self.other_choices += u64::from(never.best != found.best);
        if zip(never.logits, found.logits).any(|(a, b)| a.to_bits() != b.to_bits()) {
            self.other_bits += 1;
            self.divergence += never.divergence(found);
        }
    }
}

impl<'a> Choice<'a> {
    fn new(logits: &'a [f32]) -> Self {
        let (best, &greatest) =
            logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        let sum: f64 = logits.iter().map(|it| f64::from((it - greatest).exp())).sum();
        Self { logits, greatest, best, log_sum: sum.ln() }
    }

    fn log_probability(&self, token: usize) -> f64 {
        f64::from(self.logits[token] - self.greatest) - self.log_sum
    }

    /// Of Kullback and Leibler, of `other` from this.
    fn divergence(&self, other: &Self) -> f64 {
        let terms = (0..self.logits.len()).map(|token| {
            let (own, others) = (self.log_probability(token), other.log_probability(token));
            own.exp() * (own - others)
        });
        terms.sum()
    }
}
