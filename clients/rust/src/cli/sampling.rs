//! How to draw tokens and when to stop: flags that several commands have.

use aerie_client::v1;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// 0 takes the most probable token; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temperature: f32,

    /// Draw from the K most probable tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,

    /// Draw from the smallest set with this probability; 1 for all
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,

    /// Make what was said lately less probable; 1 for not at all
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    repetition_penalty: f32,

    /// Makes the draws repeatable; the server chooses one otherwise
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Most tokens to generate; 0 for the server's default
    #[arg(long, value_name = "N", default_value_t = 0)]
    tokens: u32,

    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// The part of a `Start` that these flags settle.
    pub(super) fn start(&self) -> v1::Start {
        let Self { temperature, top_k, top_p, repetition_penalty, seed, tokens, ref stop } = *self;
        v1::Start {
            sampling: Some(v1::Sampling {
                temperature,
                top_k,
                top_p,
                repetition_penalty,
                seed,
                ..v1::Sampling::default()
            }),
            max_tokens: tokens,
            stop: stop.clone(),
            ..v1::Start::default()
        }
    }
}
