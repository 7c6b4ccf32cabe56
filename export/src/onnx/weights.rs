//! Where the elements of parameters come from, one tensor at a time: a checkpoint, a graph that was
//! written before, or a seed.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path as FilePath, PathBuf},
};

use aerie_models::{Init, ParameterSpec, Parametric};
use aerie_ops::matmul::{Format, Order, Packing};
use prost::Message;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use thiserror::Error;

use crate::onnx::{
    packed,
    proto::{self, DataType},
    tensors::{Elements, TensorFile, io_error},
};

/// A source of parameters.
pub trait Weights: std::fmt::Debug {
    /// The elements of the parameter called `name`, row-major.
    ///
    /// # Errors
    /// If they cannot be read.
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError>;

    /// Mean squares of the inputs that the matrix called `name` is multiplied by, `[groups · inputs]`:
    /// how much an error in each column matters. None if nobody has looked.
    fn importance(&self, _name: &str) -> Option<&[f32]> {
        None
    }
}

/// Why parameters cannot be had.
#[derive(Debug, Error)]
pub enum WeightsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Header { path: PathBuf, source: serde_json::Error },
    #[error("{}: the header has {found_bytes} bytes; at most {max_bytes} are read", path.display())]
    HeaderTooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    #[error("{}: {found_bytes} bytes; a graph has at most {max_bytes}", path.display())]
    GraphTooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    #[error("{}: {source}", path.display())]
    Graph { path: PathBuf, source: prost::DecodeError },
    #[error("{}: tensor {name} is missing", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: tensor {name} is missing; one of shape {expected:?} is expected", path.display())]
    Absent { path: PathBuf, name: String, expected: Vec<u64> },
    #[error("{}: tensor {name} is none of the model's", path.display())]
    Unknown { path: PathBuf, name: String },
    #[error("{}: tensor {name} has shape {found:?}; {expected:?} is expected", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("{}: tensor {name} holds {found}; f32, f16 or bf16 is expected", path.display())]
    Dtype { path: PathBuf, name: String, found: String },
    #[error(
        "{}: {found_bytes} bytes; its header describes {expected_bytes}: the file is cut or has \
         something appended", path.display()
    )]
    Length { path: PathBuf, found_bytes: u64, expected_bytes: u64 },
    #[error(
        "{}: tensor {name} has {found_bytes} bytes; {expected_bytes} are expected", path.display()
    )]
    Bytes { path: PathBuf, name: String, found_bytes: u64, expected_bytes: u64 },
    #[error("{}: tensor {name} reaches beyond the file's {file_bytes} bytes", path.display())]
    Outside { path: PathBuf, name: String, file_bytes: u64 },
    #[error("{}: tensors {name} and {other} lie over each other", path.display())]
    Overlap { path: PathBuf, name: String, other: String },
    #[error("{}: tensor {name} holds {found} at element {index}", path.display())]
    NotFinite { path: PathBuf, name: String, index: usize, found: f32 },
}

/// Largest graph: a protobuf message cannot be larger.
const GRAPH_BYTES_MAX: u64 = 1 << 31;

/// Parameters in a safetensors file.
#[derive(Debug)]
pub struct Checkpoint {
    file: TensorFile,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`, which must hold the parameters of `config` and no others.
    ///
    /// # Errors
    /// [`WeightsError`], naming the first tensor that does not fit.
    pub fn open(path: &FilePath, config: &impl Parametric) -> Result<Self, WeightsError> {
        let file = TensorFile::safetensors(path)?;
        let found = file.tensors().iter().map(|(name, it)| (name.clone(), it.shape.clone()));
        check_shapes(path, &found.collect(), config)?;
        Ok(Self { file })
    }
}

impl Weights for Checkpoint {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        let values = self.file.read(name, 0..spec.shape.iter().product())?;
        finite(values, self.file.path(), name)
    }
}

/// Parameters as initializers of a graph that [`crate::onnx::write()`] wrote.
#[derive(Debug)]
pub struct Drawn {
    path: PathBuf,
    initializers: BTreeMap<String, proto::Tensor>,
}

impl Drawn {
    /// Opens the graph at `path`, which must hold the parameters of `config`.
    ///
    /// # Errors
    /// [`WeightsError`], naming the first tensor that does not fit.
    pub fn open(path: &FilePath, config: &impl Parametric) -> Result<Self, WeightsError> {
        let model = read_model(path)?;
        let initializers = model.graph.unwrap_or_default().initializer.into_iter();
        let initializers: BTreeMap<_, _> = initializers
            .filter(|it| !it.name.starts_with("constant."))
            .map(|it| (it.name.clone(), it))
            .collect();
        let parameters = config.parameters();
        let mut found = BTreeMap::new();
        for (name, it) in &initializers {
            // Bytes are a parameter packed for our products: of its own shape if their shape tells so.
            let spec = parameters.iter().find(|(path, _)| path.as_str() == name.as_str());
            let shape = match spec.filter(|_| it.data_type() == DataType::U8) {
                Some((_, spec)) if packing_of(it, spec).is_some() => spec.shape.clone(),
                _ => dims(it),
            };
            found.insert(name.clone(), shape);
        }
        check_shapes(path, &found, config)?;
        Ok(Self { path: path.to_owned(), initializers })
    }
}

impl Weights for Drawn {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        finite(self.read(name, spec)?, &self.path, name)
    }
}

impl Drawn {
    /// The elements of an initializer, whatever they are.
    fn read(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        let path = || self.path.clone();
        let Some(tensor) = self.initializers.get(name) else {
            return Err(WeightsError::Missing { path: path(), name: name.to_owned() });
        };
        let element = tensor.data_type();
        let packing = (element == DataType::U8).then(|| packing_of(tensor, spec)).flatten();
        let is_float = matches!(element, DataType::F32 | DataType::F16 | DataType::BF16);
        if packing.is_none() && !is_float {
            let (name, found) = (name.to_owned(), format!("{element:?}"));
            return Err(WeightsError::Dtype { path: path(), name, found });
        }
        let elements = Elements { element, count: dims(tensor).iter().product() };
        let check_bytes = |found_bytes| {
            let expected_bytes = elements.count * element.bytes();
            let (path, name) = (path(), name.to_owned());
            let error = WeightsError::Bytes { path, name, found_bytes, expected_bytes };
            if found_bytes == expected_bytes { Ok(found_bytes) } else { Err(error) }
        };
        if let Some(bytes) = &tensor.raw_data {
            check_bytes(bytes.len() as u64)?;
            return Ok(match packing {
                Some((packing, order)) => packing.unpack(bytes, order),
                None => {
                    let mut values = Vec::new();
                    elements.parse(bytes, &mut values);
                    values
                }
            });
        }
        let number = |key| tensor.external(key).and_then(|it| it.parse().ok()).unwrap_or(0);
        let n_bytes = check_bytes(number("length"))?;
        let location = FilePath::new(tensor.external("location").unwrap_or_default());
        let Some(file_name) = location.file_name() else {
            return Err(WeightsError::Missing { path: path(), name: name.to_owned() });
        };
        let path = self.path.with_file_name(file_name);
        let file = File::open(&path).map_err(io_error(&path))?;
        let offset = number("offset");
        // Before memory is asked for: the graph may say what it likes.
        let file_bytes = file.metadata().map_err(io_error(&path))?.len();
        if offset.checked_add(n_bytes).is_none_or(|end| file_bytes < end) {
            return Err(WeightsError::Outside { path, name: name.to_owned(), file_bytes });
        }
        let Some((packing, order)) = packing else {
            return elements.read(&file, offset).map_err(io_error(&path));
        };
        let mut bytes = vec![0; usize::try_from(n_bytes).expect("64 bits")];
        file.read_exact_at(&mut bytes, offset).map_err(io_error(&path))?;
        Ok(packing.unpack(&bytes, order))
    }
}

/// `values`, if all of them are numbers: those of the tensor `name` in the file at `path`.
///
/// Formats of 16 bits have no other place where this is noticed: what our products read of them lies in
/// the bundle as it is, and a server does not read gigabytes of it to find out.
///
/// # Errors
/// [`WeightsError::NotFinite`], naming the first that is none.
pub(crate) fn finite(
    values: Vec<f32>,
    path: &FilePath,
    name: &str,
) -> Result<Vec<f32>, WeightsError> {
    match values.iter().position(|it| !it.is_finite()) {
        None => Ok(values),
        Some(index) => {
            let (path, name) = (path.to_owned(), name.to_owned());
            Err(WeightsError::NotFinite { path, name, index, found: values[index] })
        }
    }
}

/// Extents of an initializer.
fn dims(tensor: &proto::Tensor) -> Vec<u64> {
    tensor.dims.iter().map(|&extent| u64::try_from(extent).unwrap_or(0)).collect()
}

/// How an initializer of bytes holds the parameter of `spec`: the format follows from its shape.
fn packing_of(tensor: &proto::Tensor, spec: &ParameterSpec) -> Option<(Packing, Order)> {
    let packings = Format::ALL.into_iter().filter_map(|format| packed::packing(format, spec));
    let found = dims(tensor);
    packings.into_iter().find(|(it, _)| it.shape().map(|extent| extent as u64) == *found)
}

/// Reads a graph without its external data.
///
/// # Errors
/// If the file cannot be read or is not a graph.
pub fn read_model(path: &FilePath) -> Result<proto::Model, WeightsError> {
    let found_bytes = fs::metadata(path).map_err(io_error(path))?.len();
    if GRAPH_BYTES_MAX < found_bytes {
        let (path, max_bytes) = (path.to_owned(), GRAPH_BYTES_MAX);
        return Err(WeightsError::GraphTooLarge { path, found_bytes, max_bytes });
    }
    let bytes = fs::read(path).map_err(io_error(path))?;
    proto::Model::decode(&*bytes)
        .map_err(|source| WeightsError::Graph { path: path.to_owned(), source })
}

/// Parameters as training would begin with them: each a function of the seed and its name.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    pub seed: u64,
}

impl Weights for Random {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(name.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let elements: u64 = spec.shape.iter().product();
        Ok((0..elements).map(|_| draw(spec.init, &mut rng)).collect())
    }
}

/// Draws one element.
#[expect(clippy::cast_possible_truncation, reason = "drawn in f64, kept in f32")]
fn draw(init: Init, rng: &mut ChaCha8Rng) -> f32 {
    let mut uniform = |min: f64, max: f64| min + (max - min) * rng.random::<f64>();
    // With a = σ(Λ) = ρ and p = -Λ: p = ln(1/ρ - 1).
    let logit = |rho: f64| (rho.recip() - 1.0).ln();
    let drawn = match init {
        Init::Zeros => 0.0,
        Init::Constant(value) => value,
        Init::Normal { std } => {
            // Box and Muller's transform; `1 - u` keeps the logarithm off 0.
            let radius = (-2.0 * (1.0 - uniform(0.0, 1.0)).ln()).sqrt();
            std * radius * uniform(0.0, std::f64::consts::TAU).cos()
        }
        Init::RgLruCode { rho_min, rho_max } => {
            logit(uniform(rho_min.powi(2) + 1e-8, rho_max.powi(2) + 1e-8).sqrt())
        }
        Init::RgLruPaper { a_min, a_max } => logit(uniform(a_min, a_max).powf(0.125)),
    };
    drawn as f32
}

/// Compares what a file holds with what the model has.
fn check_shapes(
    path: &FilePath,
    found: &BTreeMap<String, Vec<u64>>,
    config: &impl Parametric,
) -> Result<(), WeightsError> {
    let parameters = config.parameters();
    for (name, spec) in &parameters {
        let (path, name) = (path.to_owned(), name.to_string());
        match found.get(&name) {
            None => {
                let expected = spec.shape.clone();
                return Err(WeightsError::Absent { path, name, expected });
            }
            Some(found) if *found != spec.shape => {
                let (found, expected) = (found.clone(), spec.shape.clone());
                return Err(WeightsError::Shape { path, name, found, expected });
            }
            Some(_) => {}
        }
    }
    let known = |name: &&String| parameters.keys().any(|it| it.as_str() == name.as_str());
    match found.keys().find(|name| !known(name)) {
        Some(name) => Err(WeightsError::Unknown { path: path.to_owned(), name: name.clone() }),
        None => Ok(()),
    }
}
