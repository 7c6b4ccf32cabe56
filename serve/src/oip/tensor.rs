//! Tensors as they travel: inputs that are read, outputs that are written.
//!
//! In raw form numbers are little-endian, rows lie one after another, and each element of `BYTES` has its length
//! before it, in 4 bytes.

#[cfg(test)]
mod tests;

use std::mem;

use aerie_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    infer_parameter::ParameterChoice, model_infer_request::InferRequestedOutputTensor,
    model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};
use bytes::{Buf as _, Bytes};

use crate::admission::Reject;

/// The datatypes of tensors that some model takes or gives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Datatype {
    Bytes,
    Fp32,
    Int32,
    Int64,
}

/// A tensor that a model takes or gives. An extent of -1 differs from request to request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signature {
    pub name: &'static str,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
}

/// A tensor of a request, whose elements are as many as its shape says.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: String,
    pub shape: Vec<usize>,
    datatype: String,
    n_elements: usize,
    contents: Contents,
}

#[derive(Clone, Debug)]
enum Contents {
    Raw(Bytes),
    Typed(InferTensorContents),
}

/// A tensor of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: &'static str,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
    /// In raw form.
    pub raw: Bytes,
}

/// Which outputs a request wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Vec<InferRequestedOutputTensor>);

/// Extents of one tensor.
const RANK_MAX: usize = 8;
/// Of a tensor or a parameter.
const NAME_BYTES_MAX: usize = 128;
/// Before each element of `BYTES`.
const LENGTH_BYTES: usize = 4;
/// Parameter of an output: that many of the most probable classes, instead of numbers.
const CLASSIFICATION: &str = "classification";

impl Datatype {
    /// As the protocol writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "BYTES",
            Self::Fp32 => "FP32",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
        }
    }
}

impl Signature {
    pub fn new(name: &'static str, datatype: Datatype, shape: &[i64]) -> Self {
        Self { name, datatype, shape: shape.to_vec() }
    }

    pub fn describe(&self) -> TensorMetadata {
        TensorMetadata {
            name: self.name.to_owned(),
            datatype: self.datatype.name().to_owned(),
            shape: self.shape.clone(),
        }
    }
}

/// Takes the tensors out of a request, at most `tensors_max`.
///
/// # Errors
/// [`Reject::Invalid`] if one has no shape that could be, or raw contents are not one for each.
pub fn take_inputs(
    request: &mut ModelInferRequest,
    tensors_max: u32,
) -> Result<Vec<Input>, Reject> {
    let inputs = mem::take(&mut request.inputs);
    let raws = mem::take(&mut request.raw_input_contents);
    if (tensors_max as usize) < inputs.len() {
        let problem = format!("are {}; at most {tensors_max} are allowed", inputs.len());
        return Err(Reject::Invalid { field: "inputs", problem });
    }
    if !raws.is_empty() && raws.len() != inputs.len() {
        let problem = format!("are {}, but there are {} inputs", raws.len(), inputs.len());
        return Err(Reject::Invalid { field: "raw_input_contents", problem });
    }
    let mut raws = raws.into_iter();
    let mut taken: Vec<Input> = Vec::with_capacity(inputs.len());
    for input in inputs {
        let name = input.name;
        if let Some(parameter) = input.parameters.keys().min() {
            let parameter: String = parameter.chars().take(NAME_BYTES_MAX).collect();
            return Err(invalid(&name, &format!("has the parameter {parameter:?}; none is known")));
        }
        if NAME_BYTES_MAX < name.len() || taken.iter().any(|it| it.name == name) {
            let name = name.chars().take(NAME_BYTES_MAX).collect::<String>();
            return Err(invalid(&name, "is there twice, or its name is too long"));
        }
        let extents = shape(&name, &input.shape)?;
        let n_elements = extents.iter().product();
        let contents = match (raws.next(), input.contents) {
            (Some(_), Some(_)) => {
                return Err(invalid(&name, "has raw contents and typed ones"));
            }
            (Some(raw), None) => Contents::Raw(raw),
            (None, typed) => Contents::Typed(typed.unwrap_or_default()),
        };
        let datatype = input.datatype;
        taken.push(Input { name, shape: extents, datatype, n_elements, contents });
    }
    Ok(taken)
}

fn shape(name: &str, extents: &[i64]) -> Result<Vec<usize>, Reject> {
    let unsound =
        || invalid(name, &format!("has a shape of {} extents that cannot be", extents.len()));
    if RANK_MAX < extents.len() {
        return Err(unsound());
    }
    let extents: Option<Vec<usize>> = extents.iter().map(|&it| usize::try_from(it).ok()).collect();
    let extents = extents.ok_or_else(unsound)?;
    // With elements of at least a byte, no request has as many.
    let total = extents.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent));
    total.filter(|&n| n <= u32::MAX as usize).ok_or_else(unsound)?;
    Ok(extents)
}

impl Input {
    /// The elements of a tensor of INT64 or INT32.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if it is none, or has not as many elements as it says.
    pub fn integers(mut self) -> Result<Vec<i64>, Reject> {
        match (self.datatype.as_str(), &mut self.contents) {
            ("INT64", Contents::Raw(raw)) => {
                let raw = mem::take(raw);
                Ok(self.numbers(&raw)?.map(i64::from_le_bytes).collect())
            }
            ("INT32", Contents::Raw(raw)) => {
                let raw = mem::take(raw);
                Ok(self.numbers(&raw)?.map(|it| i32::from_le_bytes(it).into()).collect())
            }
            ("INT64", Contents::Typed(typed)) => {
                let elements = mem::take(&mut typed.int64_contents);
                self.counted(elements)
            }
            ("INT32", Contents::Typed(typed)) => {
                let elements = mem::take(&mut typed.int_contents);
                self.counted(elements.into_iter().map(i64::from).collect())
            }
            _ => Err(self.another_datatype("INT64 or INT32")),
        }
    }

    /// The elements of a tensor of FP32.
    ///
    /// # Errors
    /// As [`Input::integers`].
    pub fn floats(mut self) -> Result<Vec<f32>, Reject> {
        match (self.datatype.as_str(), &mut self.contents) {
            ("FP32", Contents::Raw(raw)) => {
                let raw = mem::take(raw);
                Ok(self.numbers(&raw)?.map(f32::from_le_bytes).collect())
            }
            ("FP32", Contents::Typed(typed)) => {
                let elements = mem::take(&mut typed.fp32_contents);
                self.counted(elements)
            }
            _ => Err(self.another_datatype("FP32")),
        }
    }

    /// The elements of a tensor of BYTES.
    ///
    /// # Errors
    /// As [`Input::integers`].
    pub fn strings(mut self) -> Result<Vec<Bytes>, Reject> {
        match (self.datatype.as_str(), &mut self.contents) {
            ("BYTES", Contents::Raw(raw)) => {
                let mut strings = Vec::new();
                let mut rest = mem::take(raw);
                // One more than there should be is enough to see that.
                while rest.has_remaining() && strings.len() <= self.n_elements {
                    let length = rest.try_get_u32_le().ok().map(|it| it as usize);
                    match length.filter(|&it| it <= rest.remaining()) {
                        Some(length) => strings.push(rest.split_to(length)),
                        None => return Err(invalid(&self.name, "ends amid an element")),
                    }
                }
                self.counted(strings)
            }
            ("BYTES", Contents::Typed(typed)) => {
                let elements = mem::take(&mut typed.bytes_contents);
                self.counted(elements)
            }
            _ => Err(self.another_datatype("BYTES")),
        }
    }

    /// Chunks of a raw tensor, if it has as many bytes as its shape asks for.
    fn numbers<'a, const N: usize>(
        &self,
        raw: &'a Bytes,
    ) -> Result<impl Iterator<Item = [u8; N]> + use<'a, N>, Reject> {
        let expected_bytes = self.n_elements * N;
        if raw.len() != expected_bytes {
            let found = raw.len();
            let problem = format!("has {found} bytes; {expected_bytes} are expected by its shape");
            return Err(invalid(&self.name, &problem));
        }
        Ok(raw.as_chunks::<N>().0.iter().copied())
    }

    fn counted<T>(&self, elements: Vec<T>) -> Result<Vec<T>, Reject> {
        if elements.len() == self.n_elements {
            return Ok(elements);
        }
        let (found, expected) = (elements.len(), self.n_elements);
        let problem = format!("has {found} elements; {expected} are expected by its shape");
        Err(invalid(&self.name, &problem))
    }

    fn another_datatype(&self, expected: &str) -> Reject {
        let found: String = self.datatype.chars().take(NAME_BYTES_MAX).collect();
        invalid(&self.name, &format!("has datatype {found:?}; {expected} is expected"))
    }
}

impl Output {
    /// A tensor of BYTES.
    pub fn strings<'a>(
        name: &'static str,
        shape: Vec<i64>,
        elements: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        Self { name, datatype: Datatype::Bytes, shape, raw: encode_strings(elements) }
    }

    /// A tensor of INT64.
    pub fn integers(
        name: &'static str,
        shape: Vec<i64>,
        elements: impl IntoIterator<Item = i64>,
    ) -> Self {
        let raw = elements.into_iter().flat_map(i64::to_le_bytes).collect();
        Self { name, datatype: Datatype::Int64, shape, raw }
    }

    /// A tensor of FP32.
    pub fn floats(name: &'static str, shape: Vec<i64>, elements: &[f32]) -> Self {
        let raw = elements.iter().copied().flat_map(f32::to_le_bytes).collect();
        Self { name, datatype: Datatype::Fp32, shape, raw }
    }
}

/// Elements of BYTES in raw form.
pub fn encode_strings<'a>(elements: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut raw = Vec::new();
    for element in elements {
        let length = u32::try_from(element.len()).expect("no response is that long");
        raw.extend_from_slice(&length.to_le_bytes());
        raw.extend_from_slice(element);
    }
    raw.into()
}

impl Wanted {
    /// Takes them out of a request; none stands for all.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if one is not among `known`, which the model gives.
    pub fn take(request: &mut ModelInferRequest, known: &[Signature]) -> Result<Self, Reject> {
        let wanted = mem::take(&mut request.outputs);
        for (i, output) in wanted.iter().enumerate() {
            let unknown = output.parameters.keys().find(|it| *it != CLASSIFICATION);
            if let Some(parameter) = unknown {
                let parameter: String = parameter.chars().take(NAME_BYTES_MAX).collect();
                let problem = format!("have the parameter {parameter:?}, which is not known");
                return Err(Reject::Invalid { field: "outputs", problem });
            }
            let is_known = known.iter().any(|it| it.name == output.name);
            if !is_known || wanted[..i].iter().any(|it| it.name == output.name) {
                let names: Vec<_> = known.iter().map(|it| it.name).collect();
                let name: String = output.name.chars().take(NAME_BYTES_MAX).collect();
                let problem =
                    format!("ask for {name:?}; there are {}, once each", names.join(", "));
                return Err(Reject::Invalid { field: "outputs", problem });
            }
        }
        Ok(Self(wanted))
    }

    /// Whether `name` is asked for.
    pub fn includes(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|it| it.name == name)
    }

    /// How many classes `name` is to tell instead of its numbers; none for the numbers.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if that is no positive number.
    pub fn classes(&self, name: &str) -> Result<Option<usize>, Reject> {
        let output = self.0.iter().find(|it| it.name == name);
        let Some(parameter) = output.and_then(|it| it.parameters.get(CLASSIFICATION)) else {
            return Ok(None);
        };
        let classes = match parameter.parameter_choice {
            Some(ParameterChoice::Int64Param(n)) => usize::try_from(n).ok(),
            Some(ParameterChoice::Uint64Param(n)) => usize::try_from(n).ok(),
            _ => None,
        };
        let problem = || "has a classification that is no positive number".to_owned();
        let classes = classes.filter(|&n| 0 < n);
        classes.map(Some).ok_or_else(|| Reject::Invalid { field: "outputs", problem: problem() })
    }

    /// A response of `outputs`: of those, what is wanted, in the order in which that was asked for.
    pub fn respond(&self, outputs: Vec<Output>) -> ModelInferResponse {
        let mut outputs: Vec<_> = outputs.into_iter().filter(|it| self.includes(it.name)).collect();
        outputs.sort_by_key(|it| self.0.iter().position(|wanted| wanted.name == it.name));
        let mut response = ModelInferResponse::default();
        for Output { name, datatype, shape, raw } in outputs {
            response.raw_output_contents.push(raw);
            response.outputs.push(InferOutputTensor {
                name: name.to_owned(),
                datatype: datatype.name().to_owned(),
                shape,
                ..InferOutputTensor::default()
            });
        }
        response
    }
}

/// A parameter of a response.
pub fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

/// What is wrong with the tensor `name`.
pub(super) fn invalid(name: &str, problem: &str) -> Reject {
    Reject::Invalid { field: "inputs", problem: format!("{name:?} {problem}") }
}

/// Elements of BYTES out of their raw form, which we wrote; for JSON.
pub fn decode_strings(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (element, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(element)
    })
}
