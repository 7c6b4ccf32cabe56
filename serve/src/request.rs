//! Requests as they come off the wire, parsed into a [`Request`] that cannot be invalid.

#[cfg(test)]
mod tests;

use aerie_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::{
    admission::Reject,
    auth::Principal,
    sampler::{Penalties, Sampling},
    sessions::SessionId,
    text::{Place, Tokenizer},
};

/// A generation to run. Whatever depends on the session alone is checked already.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Who asks, and whose the session is.
    pub who: Principal,
    /// What it goes on with.
    pub origin: Origin,
    /// Whether the session outlives the generation.
    pub keep: bool,
    /// Tokens to append; empty only if there are some already.
    pub prompt: Vec<u32>,
    /// Read the prompt, and draw nothing.
    pub prompt_only: bool,
    pub sampling: Sampling,
    /// What makes the draws repeatable; none to go on with the session's or choose one.
    pub seed: Option<u64>,
    /// At least 1.
    pub tokens_max: u32,
    /// None of them empty.
    pub stop: Vec<String>,
    pub expected_position: Option<u64>,
    pub request_id: String,
    /// Of the whole request, if it has an id to know it by: the same request sent again has the same.
    pub digest: Option<u128>,
}

/// What a generation goes on with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nothing, in a session that the server names.
    New,
    /// A session; or nothing, in one that is to be made under its id, where `expected_position` is 0.
    Session,
    /// Where another session stands, or stood at `position`.
    Fork { of: SessionId, position: Option<u64> },
}

/// Limits of a [`Request`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub prompt_bytes_max: u32,
    pub prompt_tokens_max: u32,
    /// Most tokens that one generation may ask for.
    pub tokens_max: u32,
    /// What a generation gets that does not ask.
    pub tokens_default: u32,
    pub stops_max: u32,
    /// Bytes of one stop string.
    pub stop_bytes_max: u32,
    pub request_id_bytes_max: u32,
    /// Most tokens that penalties may look back over.
    pub penalty_tokens_max: u32,
    /// What they look back over if nothing is asked for.
    pub penalty_tokens_default: u32,
}

impl Request {
    /// Parses `start`, which goes on with `origin`, for a model with `vocab` tokens.
    ///
    /// # Errors
    /// [`Reject::Invalid`], which names the field and the limit.
    pub fn parse(
        who: Principal,
        start: v1::Start,
        origin: Origin,
        config: &Config,
        tokenizer: &Tokenizer,
        vocab: u32,
    ) -> Result<Self, Reject> {
        let digest = (!start.request_id.is_empty()).then(|| digest(&start));
        at_most("request_id", "bytes", start.request_id.len(), config.request_id_bytes_max)?;
        at_most("max_tokens", "tokens", start.max_tokens as usize, config.tokens_max)?;
        at_most("stop", "strings", start.stop.len(), config.stops_max)?;
        for stop in &start.stop {
            if stop.is_empty() {
                return Err(invalid("stop", "has an empty string"));
            }
            at_most("stop", "bytes in one string", stop.len(), config.stop_bytes_max)?;
        }
        let begins = match origin {
            Origin::New => true,
            Origin::Session => start.expected_position == Some(0),
            Origin::Fork { position, .. } => position == Some(0),
        };
        let place = if begins { Place::First } else { Place::Later };
        let prompt = parse_prompt(start.prompt, place, config, tokenizer, vocab)?;
        if prompt.is_empty() && begins {
            return Err(invalid("prompt", "has no token, and the session is new"));
        }
        let sampling = start.sampling.unwrap_or_default();
        Ok(Self {
            who,
            origin,
            keep: start.keep,
            prompt,
            prompt_only: start.prompt_only,
            seed: sampling.seed,
            sampling: parse_sampling(&sampling, config)?,
            tokens_max: match start.max_tokens {
                0 => config.tokens_default,
                tokens_max => tokens_max,
            },
            stop: start.stop,
            expected_position: start.expected_position,
            request_id: start.request_id,
            digest,
        })
    }
}

/// What tells a request from all others: 128 bits of the BLAKE3 of its encoding.
pub fn digest(request: &impl Message) -> u128 {
    let hash = blake3::hash(&request.encode_to_vec());
    u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prompt_bytes_max: 1 << 20,
            prompt_tokens_max: 1 << 17,
            tokens_max: 1 << 16,
            tokens_default: 256,
            stops_max: 8,
            stop_bytes_max: 64,
            request_id_bytes_max: 64,
            penalty_tokens_max: 4096,
            penalty_tokens_default: 256,
        }
    }
}

fn parse_prompt(
    prompt: Option<v1::start::Prompt>,
    place: Place,
    config: &Config,
    tokenizer: &Tokenizer,
    vocab: u32,
) -> Result<Vec<u32>, Reject> {
    let tokens = match prompt {
        None => Vec::new(),
        Some(v1::start::Prompt::Text(text)) => {
            at_most("prompt", "bytes", text.len(), config.prompt_bytes_max)?;
            let unknown = || invalid("prompt", "has text that the model's tokenizer cannot write");
            tokenizer.encode(&text, place).ok_or_else(unknown)?
        }
        Some(v1::start::Prompt::Tokens(tokens)) => tokens.ids,
    };
    at_most("prompt", "tokens", tokens.len(), config.prompt_tokens_max)?;
    if let Some(token) = tokens.iter().find(|&&token| vocab <= token) {
        let problem = format!("has token {token}, but the vocabulary ends at {}", vocab - 1);
        return Err(Reject::Invalid { field: "prompt", problem });
    }
    Ok(tokens)
}

fn parse_sampling(sampling: &v1::Sampling, config: &Config) -> Result<Sampling, Reject> {
    let &v1::Sampling { temperature, top_k, top_p, .. } = sampling;
    let penalties = parse_penalties(sampling, config)?;
    if !temperature.is_finite() || temperature < 0.0 {
        let problem = format!("is {temperature}; it must be finite and at least 0");
        return Err(Reject::Invalid { field: "sampling.temperature", problem });
    }
    if !(0.0..=1.0).contains(&top_p) {
        let problem = format!("is {top_p}; it must be from 0 to 1");
        return Err(Reject::Invalid { field: "sampling.top_p", problem });
    }
    // On the wire 0 stands for "all" in both.
    let top_p = if top_p == 0.0 { 1.0 } else { top_p };
    Ok(Sampling { temperature, top_k, top_p, penalties })
}

fn parse_penalties(sampling: &v1::Sampling, config: &Config) -> Result<Penalties, Reject> {
    let &v1::Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = sampling;
    if !repetition_penalty.is_finite() || repetition_penalty < 0.0 {
        let problem = format!("is {repetition_penalty}; it must be finite and above 0");
        return Err(Reject::Invalid { field: "sampling.repetition_penalty", problem });
    }
    for (field, penalty) in [
        ("sampling.presence_penalty", presence_penalty),
        ("sampling.frequency_penalty", frequency_penalty),
    ] {
        if !penalty.is_finite() {
            let problem = format!("is {penalty}; it must be finite");
            return Err(Reject::Invalid { field, problem });
        }
    }
    let window = sampling.penalty_tokens;
    at_most("sampling.penalty_tokens", "tokens", window as usize, config.penalty_tokens_max)?;
    let penalties = Penalties {
        // On the wire 0 stands for none in this, and for the default in the window.
        repetition: if repetition_penalty == 0.0 { 1.0 } else { repetition_penalty },
        presence: presence_penalty,
        frequency: frequency_penalty,
        window: if window == 0 { config.penalty_tokens_default } else { window },
    };
    Ok(if penalties.are_any() { penalties } else { Penalties::NONE })
}

/// Passes if there are no more than `max`.
///
/// # Errors
/// [`Reject::Invalid`] if there are.
pub(crate) fn at_most(
    field: &'static str,
    unit: &str,
    found: usize,
    max: u32,
) -> Result<(), Reject> {
    if found <= max as usize {
        return Ok(());
    }
    Err(Reject::Invalid {
        field,
        problem: format!("has {found} {unit}; at most {max} are allowed"),
    })
}

fn invalid(field: &'static str, problem: &str) -> Reject {
    Reject::Invalid { field, problem: problem.to_owned() }
}
