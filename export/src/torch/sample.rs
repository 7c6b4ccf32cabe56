//! `aerie-export sample`: text from a trained model, one token after another.

#[cfg(test)]
mod tests;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use aerie_models::{Carry, ModelConfig, decoder};
use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::{RunDir, TOKENIZER_FILE},
    data::tokenizer::{self, boundary},
    torch::{
        backend::{Handle, Packing, PackingKind, Reading, void},
        parameters::Parameters,
    },
};

/// Continues a text with a trained model.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export sample --run runs/tales --prompt 'Once upon a time' --tokens 200
  aerie-export sample --run runs/tales --temperature 0.7 --top-k 40 --seed 3")]
pub struct Args {
    /// Run directory
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Text to continue; without one, the beginning of a document
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Tokens to make, unless the document ends before
    #[arg(long, value_name = "N", default_value_t = 200)]
    tokens: u32,
    #[command(flatten)]
    sampling: Sampling,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// How a token is drawn.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub temperature: f64,
    /// Draw from this many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Draw from the fewest tokens that are this likely together
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f64,
}

/// Runs the command.
///
/// # Errors
/// If the run cannot be read, or the prompt has no tokens.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Sampling { temperature, top_p, .. } = args.sampling;
    ensure!(0.0 <= temperature, "--temperature is {temperature}; it must not be below 0");
    ensure!(0.0 < top_p && top_p <= 1.0, "--top-p is {top_p}; it must be above 0 and at most 1");
    let dir = RunDir::new(&args.run);
    let run = dir.run()?;
    let (model, _) = run.language().context("--run is not of a language model")?;
    let step = dir.latest()?.context("the run has no checkpoint yet")?;
    let parameters = Parameters::load(model, &step.model()?, Kind::Float)?;
    let tokenizer = tokenizer::load(&dir.path().join(TOKENIZER_FILE))?;
    let end = boundary(&tokenizer);
    let prompt = tokenizer.encode_fast(&*args.prompt, false).map_err(anyhow::Error::from_boxed)?;
    let prompt: Vec<u32> = end.into_iter().chain(prompt.get_ids().iter().copied()).collect();
    ensure!(!prompt.is_empty(), "--prompt: this vocabulary needs a text to begin with");

    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut session = Session::new(model, &parameters);
    let mut logits = session.feed(&prompt);
    let mut out = io::stdout().lock();
    write!(out, "{}", args.prompt)?;
    let mut text = tokenizer.decode_stream(true);
    for _ in 0..args.tokens {
        let token = draw(&logits, args.sampling, &mut rng);
        if Some(token) == end {
            break;
        }
        if let Some(piece) = text.step(token).map_err(anyhow::Error::from_boxed)? {
            write!(out, "{piece}")?;
            out.flush()?;
        }
        logits = session.feed(&[token]);
    }
    writeln!(out)?;
    Ok(())
}

/// A model that reads one stream, its state carried along.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a ModelConfig,
    parameters: &'a Parameters,
    carry: Carry<Handle>,
    position: i64,
}

impl<'a> Session<'a> {
    /// A session that has read nothing.
    pub fn new(model: &'a ModelConfig, parameters: &'a Parameters) -> Self {
        let carry = void(model, 1, parameters.options()).map(Handle::of);
        Self { model, parameters, carry, position: 0 }
    }

    /// Reads `tokens`, at least one, and returns the logits of what comes next.
    pub fn feed(&mut self, tokens: &[u32]) -> Vec<f64> {
        no_grad(|| {
            let ids: Vec<i64> = tokens.iter().copied().map(i64::from).collect();
            let packing = Packing {
                bounds: vec![0, ids.len() as i64],
                kind: PackingKind::Sessions { positions: vec![self.position] },
            };
            let reading = Reading::new(self.model, self.parameters, packing);
            let tokens = Handle(Tensor::from_slice(&ids));
            let (logits, carry) = decoder::step(self.model, &reading, &tokens, &self.carry);
            self.carry = carry;
            self.position += ids.len() as i64;
            Vec::try_from(logits.0.to_kind(Kind::Double).view([-1])).expect("a row of logits")
        })
    }
}

/// Draws a token.
fn draw(logits: &[f64], sampling: Sampling, rng: &mut impl Rng) -> u32 {
    let mut order: Vec<u32> = (0u32..).take(logits.len()).collect();
    // Likeliest first, the lower token where two are equal.
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    if sampling.temperature == 0.0 {
        return order[0];
    }
    if sampling.top_k != 0 {
        order.truncate(sampling.top_k);
    }
    let top = logits[order[0] as usize];
    let weigh = |token: &u32| ((logits[*token as usize] - top) / sampling.temperature).exp();
    let weights: Vec<f64> = order.iter().map(weigh).collect();
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let enough = weights.iter().position(|it| {
        sum += it;
        sampling.top_p * all <= sum
    });
    let kept = enough.map_or(weights.len(), |it| it + 1);
    let mut left = rng.random::<f64>() * weights[..kept].iter().sum::<f64>();
    for (token, weight) in order.iter().zip(&weights[..kept]) {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    order[kept - 1]
}
