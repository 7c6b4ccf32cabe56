//! Classifiers over the protocol: pictures or pixels in, logits, probabilities and labels out.

#[cfg(test)]
mod tests;

use std::time::Duration;

use aerie_models::images::preprocessing::{PictureLimits, Preprocessing, decode};
use aerie_proto::inference::{
    ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    ID_BYTES_MAX, VERSION,
    parameters::{Parameters, not},
    tensor::{Datatype, Input, Output, Signature, Wanted, invalid, parameter, take_inputs},
};
use crate::{
    admission::Reject,
    batcher::{Extent, Priority},
    request::at_most,
};

/// A request for classes, in our own words.
#[derive(Clone, Debug)]
pub struct Classification {
    pub given: Given,
    pub priority: Priority,
    /// How long it may wait for the device.
    pub timeout: Option<Duration>,
    pub reply: Reply,
}

/// How a request wants to be answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    id: String,
    wanted: Wanted,
}

/// What a classifier takes.
#[derive(Clone, Copy, Debug)]
pub struct Takes {
    pub classes: u32,
    /// Rows of one request, and of a batch.
    pub rows_max: u32,
    /// Of the pictures that it was measured with.
    pub usual: Extent,
}

/// What is to be classified.
#[derive(Clone, Debug)]
pub enum Given {
    Pixels(Pixels),
    /// Files of JPEG or PNG, each of which becomes a row.
    Pictures(Vec<Bytes>),
}

/// Pixels as the graph takes them, normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// `[rows, 3, H, W]`.
    pub values: Vec<f32>,
    pub rows: u32,
    pub extent: Extent,
    /// What they count for in a batch.
    pub weight: u32,
}

/// Limits of what is to be classified.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of one picture's file.
    pub picture_bytes_max: u32,
    /// Pixels of one picture's file; decoding takes up to 32 bytes for each.
    pub picture_pixels_max: u32,
    /// Requests whose pictures are decoded at once; others wait. 0 for one for each core.
    pub decoders_max: u32,
}

const IMAGE: &str = "image";
const PIXELS: &str = "pixels";
const LOGITS: &str = "logits";
const PROBABILITIES: &str = "probabilities";
const LABELS: &str = "labels";

/// What a classifier takes: one of these.
pub fn inputs() -> Vec<Signature> {
    vec![
        Signature::new(IMAGE, Datatype::Bytes, &[-1]),
        Signature::new(PIXELS, Datatype::Fp32, &[-1, 3, -1, -1]),
    ]
}

/// What a classifier of so many classes gives.
pub fn outputs(classes: u32) -> Vec<Signature> {
    vec![
        Signature::new(LOGITS, Datatype::Fp32, &[-1, classes.into()]),
        Signature::new(PROBABILITIES, Datatype::Fp32, &[-1, classes.into()]),
        Signature::new(LABELS, Datatype::Bytes, &[-1]),
    ]
}

impl Classification {
    /// Parses a request to a classifier.
    ///
    /// # Errors
    /// [`Reject::Invalid`]. Whether pictures can be decoded is found when they are.
    pub fn parse(
        mut request: ModelInferRequest,
        takes: &Takes,
        config: &super::Config,
    ) -> Result<Self, Reject> {
        let wanted = Wanted::take(&mut request, &outputs(takes.classes))?;
        for name in [LOGITS, PROBABILITIES, LABELS] {
            wanted.classes(name)?;
        }
        let inputs = take_inputs(&mut request, config.tensors_max)?;
        let mut parameters = Parameters::new(request.parameters, config.tensors_max)?;
        let priority = match parameters.take_count::<u64>("priority")? {
            // As Triton has it: 0 stands for the default, and 1 for the highest.
            None | Some(0 | 1) => Priority::High,
            Some(2) => Priority::Low,
            Some(_) => return Err(not("priority", "0, 1 or 2")),
        };
        let timeout = match parameters.take_count::<u64>("timeout")? {
            None | Some(0) => None,
            Some(us) => Some(Duration::from_micros(us)),
        };
        // A stream's one response tells that it is final in any case.
        parameters.take_flag("triton_enable_empty_final_response")?;
        parameters.finish()?;
        at_most("id", "bytes", request.id.len(), ID_BYTES_MAX)?;
        let [input] = <[Input; 1]>::try_from(inputs).map_err(|inputs| {
            let problem = format!("are {}; a classifier takes {IMAGE} or {PIXELS}", inputs.len());
            Reject::Invalid { field: "inputs", problem }
        })?;
        let given = match input.name.as_str() {
            IMAGE => pictures(input, takes.rows_max)?,
            PIXELS => pixels(input, takes)?,
            name => return Err(invalid(name, &format!("is not {IMAGE} and not {PIXELS}"))),
        };
        Ok(Self { given, priority, timeout, reply: Reply { id: request.id, wanted } })
    }
}

impl Given {
    /// What it counts for in a batch; a picture is brought to the usual extent.
    pub fn weight(&self) -> u32 {
        match self {
            Self::Pixels(pixels) => pixels.weight,
            Self::Pictures(pictures) => rows_of(pictures),
        }
    }
}

impl Reply {
    /// The response that tells `logits`, `[rows, K]`, of classes that have `labels`.
    pub fn respond(&self, model: &str, logits: &[f32], labels: &[String]) -> ModelInferResponse {
        let extent = |n: usize| i64::try_from(n).expect("memory holds them");
        let (classes, rows) = (labels.len(), extent(logits.len() / labels.len()));
        let probabilities: Vec<f32> = logits.chunks_exact(classes).flat_map(softmax).collect();
        let numbers = |name, scores: &[f32]| match self.asked(name) {
            None => Output::floats(name, vec![rows, extent(classes)], scores),
            Some(n) => best(name, rows, scores, n, labels),
        };
        let outputs = vec![
            numbers(LOGITS, logits),
            numbers(PROBABILITIES, &probabilities),
            match self.asked(LABELS) {
                None => named(logits, labels),
                Some(n) => best(LABELS, rows, &probabilities, n, labels),
            },
        ];
        let mut response = self.wanted.respond(outputs);
        response.model_name = model.to_owned();
        response.model_version = VERSION.to_owned();
        response.id.clone_from(&self.id);
        response
    }

    /// How many classes an output is to tell.
    fn asked(&self, name: &str) -> Option<usize> {
        self.wanted.classes(name).expect("`parse` has looked")
    }
}

/// Tells that no other response to a request follows on its stream.
pub fn seal(response: &mut ModelInferResponse) {
    let is_final = parameter(ParameterChoice::BoolParam(true));
    response.parameters.insert("triton_final_response".to_owned(), is_final);
}

/// Decodes pictures and does to them what the model was measured with. Before each, `goes_on` says whether that is still
/// wanted.
///
/// # Errors
/// [`Reject::Invalid`] for the first that cannot be decoded; what `goes_on` says.
pub fn prepare(
    pictures: &[Bytes],
    input: &Preprocessing,
    config: &Config,
    goes_on: impl Fn() -> Result<(), Reject>,
) -> Result<Pixels, Reject> {
    let limits = PictureLimits {
        bytes_max: config.picture_bytes_max as usize,
        pixels_max: config.picture_pixels_max as usize,
    };
    let extent = Extent { height: input.height, width: input.width };
    let mut values = Vec::new();
    for (i, file) in pictures.iter().enumerate() {
        goes_on()?;
        let of = |problem: String| invalid(IMAGE, &format!("[{i}]: {problem}"));
        let picture = decode(file, &limits).map_err(|error| of(error.to_string()))?;
        let row = input.apply(picture.view()).map_err(|error| of(error.to_string()))?;
        values.extend(row);
    }
    let rows = rows_of(pictures);
    Ok(Pixels { values, rows, extent, weight: rows })
}

fn rows_of(pictures: &[Bytes]) -> u32 {
    u32::try_from(pictures.len()).expect("`parse` has counted them")
}

fn pictures(input: Input, rows_max: u32) -> Result<Given, Reject> {
    if input.shape.iter().filter(|&&extent| extent != 1).count() > 1 {
        return Err(invalid(IMAGE, "is of more than one axis"));
    }
    let rows = input.shape.iter().product();
    let rows = row_count(IMAGE, rows, rows_max)?;
    let pictures = input.strings()?;
    assert_eq!(pictures.len(), rows as usize, "an input has as many as its shape says");
    Ok(Given::Pictures(pictures))
}

fn pixels(input: Input, takes: &Takes) -> Result<Given, Reject> {
    let &[rows, 3, height, width] = &*input.shape else {
        return Err(invalid(PIXELS, "is not of shape [n, 3, H, W]"));
    };
    let &Takes { rows_max, usual, .. } = takes;
    let rows = row_count(PIXELS, rows, rows_max)?;
    let extent = match (u32::try_from(height), u32::try_from(width)) {
        (Ok(height @ 1..), Ok(width @ 1..)) => Some(Extent { height, width }),
        _ => None,
    };
    let extent = extent.filter(|it| it.weight(usual) <= rows_max);
    let extent = extent.ok_or_else(|| {
        let Extent { height: h, width: w } = usual;
        let taken = format!("as many pixels are taken as {rows_max} of {h} by {w} have");
        invalid(PIXELS, &format!("is {height} by {width}; {taken}"))
    })?;
    let weight = rows.saturating_mul(extent.weight(usual));
    if rows_max < weight {
        let most = rows_max / extent.weight(usual);
        let problem = format!("has {rows} rows of {height} by {width}; 1 to {most} are taken");
        return Err(invalid(PIXELS, &problem));
    }
    Ok(Given::Pixels(Pixels { values: input.floats()?, rows, extent, weight }))
}

fn row_count(name: &str, rows: usize, rows_max: u32) -> Result<u32, Reject> {
    match u32::try_from(rows) {
        Ok(rows) if (1..=rows_max).contains(&rows) => Ok(rows),
        _ => Err(invalid(name, &format!("has {rows} rows; 1 to {rows_max} are taken"))),
    }
}

/// Probabilities of one row; what is largest is taken off first, so that nothing overflows.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|it| (it - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|it| it / sum).collect()
}

/// The label of the most probable class of each row.
fn named(logits: &[f32], labels: &[String]) -> Output {
    let rows = logits.chunks_exact(labels.len());
    let best: Vec<&[u8]> = rows.map(|row| labels[ranked(row)[0]].as_bytes()).collect();
    let shape = vec![i64::try_from(best.len()).expect("memory holds them")];
    Output::strings(LABELS, shape, best)
}

/// The `n` classes with the highest scores of each row, as `score:index:label`.
fn best(name: &'static str, rows: i64, scores: &[f32], n: usize, labels: &[String]) -> Output {
    let n = n.min(labels.len());
    let mut texts = Vec::new();
    for row in scores.chunks_exact(labels.len()) {
        let of = |&class: &usize| format!("{:.6}:{class}:{}", row[class], labels[class]);
        texts.extend(ranked(row).iter().take(n).map(of));
    }
    let shape = vec![rows, i64::try_from(n).expect("memory holds them")];
    Output::strings(name, shape, texts.iter().map(String::as_bytes))
}

/// Classes by falling score; of equal ones the first is first.
fn ranked(scores: &[f32]) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..scores.len()).collect();
    classes.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    classes
}

impl Default for Config {
    fn default() -> Self {
        Self { picture_bytes_max: 8 << 20, picture_pixels_max: 1 << 24, decoders_max: 0 }
    }
}
