//! Recurrent models over the protocol: a request is a turn of a session, its tensors are text and tokens.

#[cfg(test)]
mod tests;

use aerie_proto::{
    inference::{ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice},
    v1,
};

use super::{
    Config, ID_BYTES_MAX, VERSION,
    parameters::{Parameters, not},
    sequence::{Sequence, SequenceKey},
    tensor::{Datatype, Input, Output, Signature, Wanted, invalid, parameter, take_inputs},
};
use crate::{
    admission::Reject,
    auth::TenantId,
    request::{self, at_most},
};

/// A request for tokens, in our own words.
#[derive(Clone, Debug)]
pub struct Generation {
    pub start: v1::Start,
    /// The sequence that it is part of.
    pub sequence: Option<Sequence>,
    /// A stream ends with a response that has no tensors, to tell that it has.
    pub tells_end: bool,
    id: String,
    wanted: Wanted,
}

/// What came of a generation, or of a part of it.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub text: String,
    pub tokens: Vec<u32>,
}

const TEXT_INPUT: &str = "text_input";
const TEXT_OUTPUT: &str = "text_output";
/// Input and output alike.
const TOKENS: &str = "tokens";
/// Whether no other response follows on a stream.
const FINAL: &str = "triton_final_response";
/// Stop strings in one parameter that is a text.
const STOPS_BYTES_MAX: usize = 4096;

/// What a recurrent model takes: one of these.
pub fn inputs() -> Vec<Signature> {
    vec![
        Signature::new(TEXT_INPUT, Datatype::Bytes, &[1]),
        Signature::new(TOKENS, Datatype::Int64, &[-1]),
    ]
}

/// What it gives.
pub fn outputs() -> Vec<Signature> {
    vec![
        Signature::new(TEXT_OUTPUT, Datatype::Bytes, &[1]),
        Signature::new(TOKENS, Datatype::Int64, &[-1]),
    ]
}

impl Generation {
    /// Parses a request to a recurrent model. As it may have to wait for others of its sequence, its prompt is held to
    /// `limits` here already.
    ///
    /// # Errors
    /// [`Reject::Invalid`]; what depends on the model alone is found when it is run.
    pub fn parse(
        mut request: ModelInferRequest,
        tenant: TenantId,
        key: &SequenceKey,
        config: &Config,
        limits: &request::Config,
    ) -> Result<Self, Reject> {
        let wanted = Wanted::take(&mut request, &outputs())?;
        if wanted.classes(TEXT_OUTPUT)?.or(wanted.classes(TOKENS)?).is_some() {
            let problem = "have a classification, which is for models that classify".to_owned();
            return Err(Reject::Invalid { field: "outputs", problem });
        }
        let inputs = take_inputs(&mut request, config.tensors_max)?;
        let mut parameters = Parameters::new(request.parameters, config.tensors_max)?;
        let sequence = Sequence::take(&mut parameters)?;
        // It tells a request that is sent again, to a session that is kept; elsewhere it is told again, and means nothing.
        let (request_id, id_bytes_max) = match sequence {
            Some(_) => (request.id.clone(), limits.request_id_bytes_max),
            None => (String::new(), ID_BYTES_MAX),
        };
        at_most("id", "bytes", request.id.len(), id_bytes_max)?;
        let tells_end = parameters.take_flag("triton_enable_empty_final_response")?;
        let session_id =
            sequence.as_ref().map(|it| key.session(tenant, &request.model_name, &it.name));
        let expected_position = match &sequence {
            Some(Sequence { starts: true, .. }) => Some(0),
            Some(_) => parameters.take_count("expected_position")?,
            None => None,
        };
        let start = v1::Start {
            model: request.model_name,
            session_id: session_id.map_or_else(String::new, |id| id.to_string()),
            keep: sequence.is_some(),
            prompt: prompt(inputs, limits)?,
            max_tokens: parameters.take_count("max_tokens")?.unwrap_or(0),
            stop: stops(&mut parameters)?,
            expected_position,
            request_id,
            prompt_only: parameters.take_flag("prompt_only")?,
            sampling: Some(sampling(&mut parameters)?),
            ..v1::Start::default()
        };
        parameters.finish()?;
        Ok(Self { start, sequence, tells_end, id: request.id, wanted })
    }

    /// A response with a part of what was said; on a stream, another follows.
    pub fn part(&self, model: &str, said: &Said) -> ModelInferResponse {
        let mut response = self.response(model, said);
        response.parameters.insert(FINAL.to_owned(), parameter(ParameterChoice::BoolParam(false)));
        response
    }

    /// The one response to a request that is answered at once.
    pub fn whole(&self, model: &str, said: &Said, finished: &v1::Finished) -> ModelInferResponse {
        let mut response = self.response(model, said);
        tell(&mut response, finished);
        response
    }

    /// The last response of a stream, without tensors.
    pub fn end(&self, model: &str, finished: &v1::Finished) -> ModelInferResponse {
        let mut response = self.named(model, ModelInferResponse::default());
        response.parameters.insert(FINAL.to_owned(), parameter(ParameterChoice::BoolParam(true)));
        tell(&mut response, finished);
        response
    }

    fn response(&self, model: &str, said: &Said) -> ModelInferResponse {
        let n_tokens = i64::try_from(said.tokens.len()).expect("memory holds them");
        let text = Output::strings(TEXT_OUTPUT, vec![1], [said.text.as_bytes()]);
        let tokens = said.tokens.iter().map(|&token| token.into());
        let tokens = Output::integers(TOKENS, vec![n_tokens], tokens);
        self.named(model, self.wanted.respond(vec![text, tokens]))
    }

    fn named(&self, model: &str, response: ModelInferResponse) -> ModelInferResponse {
        ModelInferResponse {
            model_name: model.to_owned(),
            model_version: VERSION.to_owned(),
            id: self.id.clone(),
            ..response
        }
    }
}

/// Adds how a generation ended.
fn tell(response: &mut ModelInferResponse, finished: &v1::Finished) {
    let reason = finished.reason().as_str_name().trim_start_matches("FINISH_REASON_");
    let counts = [
        ("position", finished.position),
        ("prompt_tokens", finished.prompt_tokens.into()),
        ("generated_tokens", finished.generated_tokens.into()),
    ];
    let reason = ParameterChoice::StringParam(reason.to_lowercase());
    response.parameters.insert("finish_reason".to_owned(), parameter(reason));
    for (name, count) in counts {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        response.parameters.insert(name.to_owned(), parameter(ParameterChoice::Int64Param(count)));
    }
}

/// Text or tokens, but not both; or nothing, to go on with what there is.
fn prompt(
    inputs: Vec<Input>,
    limits: &request::Config,
) -> Result<Option<v1::start::Prompt>, Reject> {
    let mut prompt = None;
    for input in inputs {
        let name = input.name.clone();
        if prompt.is_some() {
            return Err(invalid(&name, "is there beside another; a model takes one of them"));
        }
        prompt = Some(match name.as_str() {
            TEXT_INPUT => {
                let text = text(input)?;
                at_most(TEXT_INPUT, "bytes", text.len(), limits.prompt_bytes_max)?;
                v1::start::Prompt::Text(text)
            }
            TOKENS => {
                let n = input.shape.iter().product();
                at_most(TOKENS, "tokens", n, limits.prompt_tokens_max)?;
                v1::start::Prompt::Tokens(v1::TokenIds { ids: tokens(input)? })
            }
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(invalid(&name, "is not text_input and not tokens"));
            }
        });
    }
    Ok(prompt)
}

fn text(input: Input) -> Result<String, Reject> {
    let name = input.name.clone();
    let n: usize = input.shape.iter().product();
    if n != 1 {
        return Err(invalid(&name, &format!("has {n} elements; 1 is expected")));
    }
    let texts = input.strings()?;
    let text = str::from_utf8(&texts[0]).map_err(|_| invalid(&name, "is not UTF-8"))?;
    Ok(text.to_owned())
}

fn tokens(input: Input) -> Result<Vec<u32>, Reject> {
    let name = input.name.clone();
    if input.shape.iter().filter(|&&extent| extent != 1).count() > 1 {
        return Err(invalid(&name, "is of more than one row"));
    }
    let tokens = input.integers()?.into_iter().map(|token| {
        u32::try_from(token).map_err(|_| invalid(&name, &format!("has {token}, which is no token")))
    });
    tokens.collect()
}

/// `stop` is one string; `stops` is a list of them, in JSON.
fn stops(parameters: &mut Parameters) -> Result<Vec<String>, Reject> {
    let mut stops: Vec<String> = match parameters.take_text("stops")? {
        Some(list) if list.len() <= STOPS_BYTES_MAX => {
            serde_json::from_str(&list).map_err(|_| not("stops", "a list of strings in JSON"))?
        }
        Some(_) => return Err(not("stops", "of at most 4096 bytes")),
        None => Vec::new(),
    };
    stops.extend(parameters.take_text("stop")?);
    Ok(stops)
}

fn sampling(parameters: &mut Parameters) -> Result<v1::Sampling, Reject> {
    Ok(v1::Sampling {
        temperature: parameters.take_number("temperature")?.unwrap_or(0.0),
        top_k: parameters.take_count("top_k")?.unwrap_or(0),
        top_p: parameters.take_number("top_p")?.unwrap_or(0.0),
        seed: parameters.take_count("seed")?,
        repetition_penalty: parameters.take_number("repetition_penalty")?.unwrap_or(0.0),
        presence_penalty: parameters.take_number("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: parameters.take_number("frequency_penalty")?.unwrap_or(0.0),
        penalty_tokens: parameters.take_count("penalty_tokens")?.unwrap_or(0),
    })
}
