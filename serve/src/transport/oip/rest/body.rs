//! Bodies in JSON, and tensors in binary behind them; no IO.
//!
//! ```text
//! {"inputs": [{"name": …, "parameters": {"binary_data_size": 8}}, …]}  as long as the header says
//! <8 bytes of the first tensor> <the next> …                           in raw form, in their order
//! ```

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt};

use aerie_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataResponse, ModelStatistics,
    RepositoryIndexResponse, StatisticDuration,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    admission::Reject,
    oip::{
        TENSORS_MAX,
        tensor::{Datatype, decode_strings, encode_strings},
        wire::Limits,
    },
};

/// A request, as far as its JSON says.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    body: AskedBody<'a>,
    /// What follows the JSON.
    binary: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedBody<'a> {
    id: Option<String>,
    /// The path says it as well; some clients always do.
    model_name: Option<String>,
    model_version: Option<String>,
    parameters: Option<Plains>,
    #[serde(borrow, default)]
    inputs: Few<AskedInput<'a>>,
    outputs: Option<Few<AskedOutput>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedInput<'a> {
    name: String,
    datatype: String,
    shape: Few<i64>,
    parameters: Option<Plains>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedOutput {
    name: String,
    parameters: Option<Plains>,
}

/// A list of at most [`TENSORS_MAX`].
#[derive(Debug)]
struct Few<T>(Vec<T>);

/// Parameters, at most [`TENSORS_MAX`].
#[derive(Debug, Default)]
struct Plains(HashMap<String, Plain>);

/// The value of a parameter: nothing that has others in it, as that could be of any size.
#[derive(Debug)]
struct Plain(ParameterChoice);

/// Which outputs are to be told in binary.
#[derive(Debug, Default)]
pub(super) struct Binary {
    by_default: bool,
    by_name: HashMap<String, bool>,
}

/// A response.
#[derive(Debug)]
pub(super) struct Answer {
    pub bytes: Bytes,
    /// How long the JSON is, if tensors follow it.
    pub json_bytes: Option<u64>,
}

/// Of an input: how many bytes behind the JSON are its own.
const BINARY_DATA_SIZE: &str = "binary_data_size";
/// Of an output: whether it is wanted in binary.
const BINARY_DATA: &str = "binary_data";
/// Of a request: whether outputs are that do not say.
const BINARY_DATA_OUTPUT: &str = "binary_data_output";

/// Lists within lists: as many as tensors have axes.
const DEPTH_MAX: u8 = 8;
/// Of an error that is told.
const ERROR_CHARS_MAX: usize = 200;

impl<'a> Asked<'a> {
    /// Reads a body, whose JSON has `json_bytes`, or all that there is. No more is kept of it than there is room for in a
    /// request, but for `data`, which stays as it is.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if it is no request.
    pub(super) fn parse(bytes: &'a Bytes, json_bytes: Option<usize>) -> Result<Self, Reject> {
        let length = json_bytes.unwrap_or(bytes.len());
        let Some((json, _)) = bytes.split_at_checked(length) else {
            let found = bytes.len();
            return Err(invalid(format!("has {found} bytes, and its JSON is said to have more")));
        };
        let body = serde_json::from_slice(json)
            .map_err(|error| invalid(format!("is no request: {}", short(&error))))?;
        Ok(Self { body, binary: bytes.slice(length..) })
    }

    /// The same as gRPC would have it, with all tensors in raw form; and how the answer is to be told.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if tensors are not what they say, or there is more than `limits` allow.
    pub(super) fn request(self, limits: &Limits) -> Result<(ModelInferRequest, Binary), Reject> {
        let Self { body, mut binary } = self;
        let (n_inputs, max) = (body.inputs.0.len(), limits.tensors_max);
        if (max as usize) < n_inputs {
            let problem = format!("are {n_inputs}; at most {max} are allowed");
            return Err(Reject::Invalid { field: "inputs", problem });
        }
        let mut parameters = plain(body.parameters);
        let mut wanted = Binary {
            by_default: take_flag(&mut parameters, BINARY_DATA_OUTPUT)?.unwrap_or(false),
            ..Binary::default()
        };
        let mut request = ModelInferRequest {
            model_name: body.model_name.unwrap_or_default(),
            model_version: body.model_version.unwrap_or_default(),
            id: body.id.unwrap_or_default(),
            parameters,
            ..ModelInferRequest::default()
        };
        let mut budget = Budget { max: limits.elements_max, left: limits.elements_max as usize };
        for asked in body.inputs.0 {
            let (input, raw) = asked.read(&mut binary, &mut budget)?;
            request.raw_input_contents.push(raw);
            request.inputs.push(input);
        }
        if !binary.is_empty() {
            let left = binary.len();
            return Err(invalid(format!("has {left} bytes that belong to no input")));
        }
        for AskedOutput { name, parameters } in body.outputs.map_or_else(Vec::new, |it| it.0) {
            let mut parameters = plain(parameters);
            if let Some(flag) = take_flag(&mut parameters, BINARY_DATA)? {
                wanted.by_name.insert(name.clone(), flag);
            }
            request.outputs.push(InferRequestedOutputTensor { name, parameters });
        }
        Ok((request, wanted))
    }
}

impl AskedInput<'_> {
    /// The input, and its elements in raw form, be they in its JSON or next in `binary`.
    fn read(
        self,
        binary: &mut Bytes,
        budget: &mut Budget,
    ) -> Result<(InferInputTensor, Bytes), Reject> {
        let Self { name, datatype, shape: Few(shape), parameters, data } = self;
        budget.spend(shape.len()).map_err(|problem| of(&name, &problem))?;
        let mut parameters = plain(parameters);
        let size = parameters.remove(BINARY_DATA_SIZE).and_then(|it| it.parameter_choice);
        let raw = match (size, data) {
            (Some(size), None) => {
                let size = match size {
                    ParameterChoice::Int64Param(n) => usize::try_from(n).ok(),
                    _ => None,
                };
                let size = size.filter(|&size| size <= binary.len());
                binary.split_to(size.ok_or_else(|| {
                    of(&name, "has a binary_data_size of more bytes than there are")
                })?)
            }
            (None, Some(data)) => {
                let read = Elements::read(&datatype, &shape, budget, data);
                read.map_err(|problem| of(&name, &problem))?
            }
            _ => return Err(of(&name, "has not either `data` or a `binary_data_size`")),
        };
        Ok((InferInputTensor { name, datatype, shape, parameters, contents: None }, raw))
    }
}

/// Has a request be for the model that the path names; a body may say so too, but nothing else.
///
/// # Errors
/// [`Reject::Invalid`] if it does.
pub(super) fn name(
    request: &mut ModelInferRequest,
    name: String,
    version: String,
) -> Result<(), Reject> {
    let ModelInferRequest { model_name, model_version, .. } = request;
    let pairs = [("model_name", model_name, name), ("model_version", model_version, version)];
    for (field, said, named) in pairs {
        if said.is_empty() || *said == named {
            *said = named;
        } else if !named.is_empty() {
            let said: String = said.chars().take(64).collect();
            let problem = format!("is {said:?}, but the path names {named:?}");
            return Err(Reject::Invalid { field, problem });
        }
    }
    Ok(())
}

impl Binary {
    fn wants(&self, name: &str) -> bool {
        self.by_name.get(name).copied().unwrap_or(self.by_default)
    }
}

impl Answer {
    /// `response` in JSON, but for what is wanted in binary.
    pub(super) fn new(response: &ModelInferResponse, binary: &Binary) -> Self {
        let mut tail = Vec::new();
        let mut outputs = Vec::new();
        for (output, raw) in response.outputs.iter().zip(&response.raw_output_contents) {
            let mut value = json!({
                "name": output.name,
                "datatype": output.datatype,
                "shape": output.shape,
            });
            if binary.wants(&output.name) {
                value["parameters"] = json!({ BINARY_DATA_SIZE: raw.len() });
                tail.push(raw);
            } else {
                value["data"] = data(output, raw);
            }
            outputs.push(value);
        }
        let mut head = json!({
            "model_name": response.model_name,
            "model_version": response.model_version,
            "outputs": outputs,
        });
        if !response.id.is_empty() {
            head["id"] = response.id.clone().into();
        }
        if !response.parameters.is_empty() {
            head["parameters"] = Value::Object(describe(&response.parameters));
        }
        let mut bytes = head.to_string().into_bytes();
        let json_bytes = (!tail.is_empty()).then_some(bytes.len() as u64);
        tail.into_iter().for_each(|raw| bytes.extend_from_slice(raw));
        Self { bytes: bytes.into(), json_bytes }
    }
}

pub(super) fn metadata(metadata: &ModelMetadataResponse) -> Value {
    let tensors = |tensors: &[TensorMetadata]| {
        let tensor = |it: &TensorMetadata| json!({ "name": it.name, "datatype": it.datatype, "shape": it.shape });
        tensors.iter().map(tensor).collect::<Vec<_>>()
    };
    json!({
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": tensors(&metadata.inputs),
        "outputs": tensors(&metadata.outputs),
    })
}

pub(super) fn index(index: &RepositoryIndexResponse) -> Value {
    let models = index.models.iter().map(|it| {
        json!({ "name": it.name, "version": it.version, "state": it.state, "reason": it.reason })
    });
    models.collect()
}

/// Whether a body asks for an index of models that are ready alone.
///
/// # Errors
/// [`Reject::Invalid`] if it is no such request.
pub(super) fn asks_for_ready(bytes: &[u8]) -> Result<bool, Reject> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        #[serde(default)]
        ready: bool,
    }
    if bytes.is_empty() {
        return Ok(false);
    }
    let asked: Asked = serde_json::from_slice(bytes)
        .map_err(|error| invalid(format!("asks for no index: {error}")))?;
    Ok(asked.ready)
}

pub(super) fn statistics(models: &[ModelStatistics]) -> Value {
    let duration = |it: &Option<StatisticDuration>| {
        let it = it.unwrap_or_default();
        json!({ "count": it.count, "ns": it.ns })
    };
    let model = |it: &ModelStatistics| {
        let stats = it.inference_stats.unwrap_or_default();
        let batches = it.batch_stats.iter().map(|batch| {
            json!({
                "batch_size": batch.batch_size,
                "compute_input": duration(&batch.compute_input),
                "compute_infer": duration(&batch.compute_infer),
                "compute_output": duration(&batch.compute_output),
            })
        });
        json!({
            "name": it.name,
            "version": it.version,
            "last_inference": it.last_inference,
            "inference_count": it.inference_count,
            "execution_count": it.execution_count,
            "inference_stats": {
                "success": duration(&stats.success),
                "fail": duration(&stats.fail),
                "queue": duration(&stats.queue),
                "compute_input": duration(&stats.compute_input),
                "compute_infer": duration(&stats.compute_infer),
                "compute_output": duration(&stats.compute_output),
                "cache_hit": duration(&stats.cache_hit),
                "cache_miss": duration(&stats.cache_miss),
            },
            "batch_stats": batches.collect::<Vec<_>>(),
        })
    };
    json!({ "model_stats": models.iter().map(model).collect::<Vec<_>>() })
}

/// How many elements that do not count in bytes, and extents of shapes, may still come, in all inputs together.
struct Budget {
    max: u32,
    left: usize,
}

impl Budget {
    fn spend(&mut self, n: usize) -> Result<(), String> {
        let max = self.max;
        let left = self.left.checked_sub(n);
        self.left = left.ok_or_else(|| {
            format!("has {n} elements; at most {max} are allowed in all inputs together")
        })?;
        Ok(())
    }
}

/// Elements of a tensor that are read, in raw form.
struct Elements {
    datatype: Datatype,
    /// How many may follow by the shape.
    left: usize,
    raw: Vec<u8>,
}

impl Elements {
    /// Those in `data`, as many as `shape` says.
    fn read(
        datatype: &str,
        shape: &[i64],
        budget: &mut Budget,
        data: &RawValue,
    ) -> Result<Bytes, String> {
        let known = [Datatype::Bytes, Datatype::Fp32, Datatype::Int32, Datatype::Int64];
        let datatype = known.into_iter().find(|it| it.name() == datatype);
        let datatype = datatype.ok_or("has a datatype that no model takes")?;
        let n = shape.iter().try_fold(1_usize, |n, &it| n.checked_mul(usize::try_from(it).ok()?));
        let left = n.ok_or("has a shape that cannot be")?;
        // A number of 4 bytes is no larger than what it is read from, by much.
        if datatype != Datatype::Fp32 {
            budget.spend(left)?;
        }
        let mut elements = Self { datatype, left, raw: Vec::new() };
        let mut deserializer = serde_json::Deserializer::from_str(data.get());
        let list = Nested { elements: &mut elements, depth_left: DEPTH_MAX };
        let read = (&mut deserializer).deserialize_seq(list);
        read.map_err(|error| format!("has no such `data`: {}", short(&error)))?;
        Ok(elements.raw.into())
    }

    fn push<E: de::Error>(&mut self, element: Option<&[u8]>) -> Result<(), E> {
        let name = self.datatype.name();
        let element = element.ok_or_else(|| E::custom(format!("an element is no {name}")))?;
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| E::custom("there are more elements than by its shape"))?;
        self.raw.extend_from_slice(element);
        Ok(())
    }

    fn push_whole<E: de::Error>(&mut self, n: Option<i64>) -> Result<(), E> {
        match (self.datatype, n) {
            (Datatype::Int64, Some(n)) => self.push(Some(&n.to_le_bytes())),
            (Datatype::Int32, Some(n)) => {
                let n = i32::try_from(n).ok().map(i32::to_le_bytes);
                self.push(n.as_ref().map(<[u8; 4]>::as_slice))
            }
            _ => self.push(None),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "f32 is what the tensor is of")]
    fn push_real<E: de::Error>(&mut self, x: f64) -> Result<(), E> {
        match self.datatype {
            Datatype::Fp32 => self.push(Some(&(x as f32).to_le_bytes())),
            _ => self.push(None),
        }
    }
}

/// A list of elements, or of such lists, which may be as deep within each other as the number says: they are read with as
/// many calls within each other.
struct Nested<'a> {
    elements: &'a mut Elements,
    depth_left: u8,
}

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.elements.datatype.name())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { elements, depth_left } = self;
        let depth_left = depth_left.checked_sub(1);
        let depth_left =
            depth_left.ok_or_else(|| de::Error::custom("a tensor has no such depth"))?;
        while seq.next_element_seed(Nested { elements: &mut *elements, depth_left })?.is_some() {}
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<(), E> {
        match self.elements.datatype {
            Datatype::Fp32 => self.elements.push_real(approximate(n.into())),
            _ => self.elements.push_whole(Some(n)),
        }
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<(), E> {
        match self.elements.datatype {
            Datatype::Fp32 => self.elements.push_real(approximate(n.into())),
            _ => self.elements.push_whole(i64::try_from(n).ok()),
        }
    }

    fn visit_f64<E: de::Error>(self, x: f64) -> Result<(), E> {
        self.elements.push_real(x)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        match self.elements.datatype {
            Datatype::Bytes => {
                let raw = encode_strings([text.as_bytes()]);
                self.elements.push(Some(&raw))
            }
            _ => self.elements.push(None),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a whole number where a real one is expected")]
fn approximate(n: i128) -> f64 {
    n as f64
}

/// An output in JSON.
fn data(output: &InferOutputTensor, raw: &[u8]) -> Value {
    match output.datatype.as_str() {
        "BYTES" => decode_strings(raw).map(|it| String::from_utf8_lossy(it)).collect(),
        "INT64" => raw.as_chunks().0.iter().map(|it| i64::from_le_bytes(*it)).collect(),
        // Not a number is `null`: JSON has no word for it.
        _ => raw.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect(),
    }
}

fn describe(parameters: &HashMap<String, InferParameter>) -> Map<String, Value> {
    let value = |parameter: &InferParameter| match &parameter.parameter_choice {
        Some(ParameterChoice::BoolParam(flag)) => (*flag).into(),
        Some(ParameterChoice::Int64Param(n)) => (*n).into(),
        Some(ParameterChoice::Uint64Param(n)) => (*n).into(),
        Some(ParameterChoice::DoubleParam(x)) => (*x).into(),
        Some(ParameterChoice::StringParam(text)) => text.clone().into(),
        None => Value::Null,
    };
    parameters.iter().map(|(name, it)| (name.clone(), value(it))).collect()
}

fn plain(parameters: Option<Plains>) -> HashMap<String, InferParameter> {
    let parameter =
        |(name, Plain(choice))| (name, InferParameter { parameter_choice: Some(choice) });
    parameters.unwrap_or_default().0.into_iter().map(parameter).collect()
}

fn take_flag(
    parameters: &mut HashMap<String, InferParameter>,
    name: &'static str,
) -> Result<Option<bool>, Reject> {
    match parameters.remove(name).and_then(|it| it.parameter_choice) {
        None => Ok(None),
        Some(ParameterChoice::BoolParam(flag)) => Ok(Some(flag)),
        Some(_) => Err(Reject::Invalid { field: name, problem: "is not true or false".to_owned() }),
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FewVisitor(Vec::new()))
    }
}

struct FewVisitor<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FewVisitor<T> {
    type Value = Few<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {TENSORS_MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Few<T>, A::Error> {
        while let Some(element) = seq.next_element()? {
            self.0.push(element);
            if (TENSORS_MAX as usize) < self.0.len() {
                return Err(de::Error::invalid_length(self.0.len(), &self));
            }
        }
        Ok(Few(self.0))
    }
}

impl<'de> Deserialize<'de> for Plains {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PlainsVisitor)
    }
}

struct PlainsVisitor;

impl<'de> Visitor<'de> for PlainsVisitor {
    type Value = Plains;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {TENSORS_MAX} parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plains, A::Error> {
        let mut plains = HashMap::new();
        while let Some((name, value)) = map.next_entry()? {
            plains.insert(name, value);
            if (TENSORS_MAX as usize) < plains.len() {
                return Err(de::Error::invalid_length(plains.len(), &self));
            }
        }
        Ok(Plains(plains))
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Self)
    }
}

struct PlainVisitor;

impl Visitor<'_> for PlainVisitor {
    type Value = ParameterChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a string, true or false")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::BoolParam(flag))
    }

    fn visit_i64<E>(self, n: i64) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::Int64Param(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<ParameterChoice, E> {
        Ok(i64::try_from(n).map_or(ParameterChoice::Uint64Param(n), ParameterChoice::Int64Param))
    }

    fn visit_f64<E>(self, x: f64) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::DoubleParam(x))
    }

    fn visit_str<E>(self, text: &str) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::StringParam(text.to_owned()))
    }
}

fn invalid(problem: String) -> Reject {
    Reject::Invalid { field: "body", problem }
}

/// The beginning of what is wrong: it may repeat whatever came.
fn short(error: &serde_json::Error) -> String {
    error.to_string().chars().take(ERROR_CHARS_MAX).collect()
}

fn of(name: &str, problem: &str) -> Reject {
    let name: String = name.chars().take(64).collect();
    Reject::Invalid { field: "inputs", problem: format!("{name:?} {problem}") }
}
