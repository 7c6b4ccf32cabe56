//! Candle's quantised RecurrentGemma: answers orders as `aerie-export bench turns` does.

use std::{
    env, fs,
    io::{self, BufRead, Write},
    time::Instant,
};

use anyhow::{Context, bail};
use candle_core::{Device, Tensor};
use candle_transformers::models::{
    quantized_recurrent_gemma::{Model, VarBuilder},
    recurrent_gemma::Config,
};
use serde_json::{Value, json};

/// What the steps of a turn take at least.
const SECONDS: f64 = 0.5;
/// Tokens that sessions have read before they decode.
const POSITION: usize = 8;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [config, weights] = &arguments[..] else {
        bail!("usage: candle-peer CONFIG.json MODEL.gguf")
    };
    let config: Config = serde_json::from_str(&fs::read_to_string(config)?)?;
    let weights = VarBuilder::from_gguf(weights, &Device::Cpu)?;
    let peer = Peer { model: Model::new(&config, weights)?, vocab: config.vocab_size };
    for line in io::stdin().lock().lines() {
        let order: Value = serde_json::from_str(&line?)?;
        let number = |value: &Value| value.as_u64().map(|it| it as usize);
        let seconds = if let Some(sessions) = number(&order["decode"]["sessions"]) {
            peer.decode(sessions)?
        } else {
            peer.prompt(number(&order["prompt"]["tokens"]).context("nobody knows this order")?)?
        };
        writeln!(io::stdout(), "{}", json!({ "seconds": seconds }))?;
    }
    Ok(())
}

struct Peer {
    /// Without a session: a copy of it shares its weights, and begins one.
    model: Model,
    vocab: usize,
}

impl Peer {
    fn decode(&self, sessions: usize) -> anyhow::Result<f64> {
        let mut model = self.model.clone();
        model.forward(&self.tokens(sessions, POSITION)?, 0)?;
        let tokens = self.tokens(sessions, 1)?;
        let mut position = POSITION;
        median(|| {
            model.forward(&tokens, position)?;
            position += 1;
            Ok(())
        })
    }

    fn prompt(&self, tokens: usize) -> anyhow::Result<f64> {
        let tokens = self.tokens(1, tokens)?;
        median(|| {
            self.model.clone().forward(&tokens, 0)?;
            Ok(())
        })
    }

    fn tokens(&self, sessions: usize, tokens: usize) -> anyhow::Result<Tensor> {
        let ids: Vec<u32> =
            (0..sessions * tokens).map(|it| ((7 * it + 1) % self.vocab) as u32).collect();
        Ok(Tensor::from_vec(ids, (sessions, tokens), &Device::Cpu)?)
    }
}

/// Median of the seconds of a step.
fn median(mut step: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    step()?;
    let mut taken = Vec::new();
    while taken.iter().sum::<f64>() < SECONDS {
        let begun = Instant::now();
        step()?;
        taken.push(begun.elapsed().as_secs_f64());
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken[taken.len() / 2])
}
