//! Writes a graph: the message itself, and the file beside it for weights that are too large for it.
//!
//! ```text
//! model.onnx        the graph; all constants if they are small together, else the small ones
//! model.onnx.data   the others, each at a multiple of 4096 bytes, so that it can be mapped
//! ```

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path as FilePath, PathBuf},
};

use aerie_models::bundle::MODEL_FILE;
use aerie_ops::matmul::PackError;
use half::f16;
use prost::Message;
use thiserror::Error;

use crate::onnx::{
    graph::{Constant, Elements, Graph},
    packed,
    proto::{self, DataLocation, DataType, Entry, OperatorSet},
    weights::{Weights, WeightsError},
};

/// Name of the file that holds large weights.
pub const DATA_FILE: &str = "model.onnx.data";
/// What the file of large weights is cut into: a page, so that each weight can be mapped alone.
const DATA_ALIGNMENT: u64 = 4096;
/// Values that are encoded at a time.
const CHUNK_VALUES: usize = 1 << 14;
/// The format's version that we write: old enough for runtimes of 2024.
const IR_VERSION: i64 = 10;
/// The standard's operators that we use: the first set that goes with [`IR_VERSION`].
const OPSET: i64 = 21;

/// When weights leave the graph's own file.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Constants together, up to which all stay; protobuf ends at 2 GiB.
    pub inline_bytes_max: u64,
    /// A constant larger than this leaves, if any has to.
    pub constant_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inline_bytes_max: 64 << 20, constant_bytes_max: 1 << 20 }
    }
}

/// Why a graph cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("tensor {name}: {found} at element {index} is beyond f16, which ends at 65504")]
    Overflow { name: String, index: usize, found: f32 },
    #[error("tensor {name}: {source}")]
    Pack { name: String, source: PackError },
}

/// Writes `graph` as [`MODEL_FILE`] in `dir`, with its parameters from `weights`; says which files
/// there are now.
///
/// Holds the constants that stay in the graph and one that does not, never all.
///
/// # Errors
/// [`WriteError`]; the files are then to be removed by the caller.
pub fn write(
    graph: Graph,
    name: &str,
    weights: &dyn Weights,
    limits: Limits,
    dir: &FilePath,
) -> Result<Vec<&'static str>, WriteError> {
    let total_bytes: u64 = graph.constants().iter().map(Constant::bytes).sum();
    let leaves = |it: &Constant| {
        limits.inline_bytes_max < total_bytes && limits.constant_bytes_max < it.bytes()
    };
    let mut files = vec![MODEL_FILE];
    let mut data = if graph.constants().iter().any(leaves) {
        files.push(DATA_FILE);
        Some(DataFile::create(dir.join(DATA_FILE))?)
    } else {
        None
    };

    let mut initializers = Vec::with_capacity(graph.constants().len());
    for constant in graph.constants() {
        let loaded = constant.load(weights)?;
        let mut tensor = constant.to_proto();
        match &mut data {
            Some(data) if leaves(constant) => {
                tensor.external_data = data.append(&loaded, constant.bytes())?;
                tensor.set_data_location(DataLocation::External);
            }
            _ => {
                let mut bytes = Vec::new();
                loaded.write(&mut bytes).expect("memory takes all");
                tensor.raw_data = Some(bytes);
            }
        }
        initializers.push(tensor);
    }
    if let Some(data) = data {
        data.finish()?;
    }

    let mut opset_import = vec![OperatorSet { domain: Some(String::new()), version: OPSET }];
    if !graph.ops().is_empty() {
        let (domain, version) = (aerie_ops::schema::DOMAIN, aerie_ops::schema::DOMAIN_VERSION);
        opset_import.push(OperatorSet { domain: Some(domain.to_owned()), version: version.into() });
    }
    let model = proto::Model {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph.into_proto(name.to_owned(), initializers)),
        opset_import,
    };
    let path = dir.join(MODEL_FILE);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(&model.encode_to_vec())?;
        file.sync_all()
    };
    write().map_err(|source| WriteError::Io { path: path.clone(), source })?;
    Ok(files)
}

impl Constant {
    /// Bytes of the elements.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.element.bytes()
    }

    fn load(&self, weights: &dyn Weights) -> Result<Loaded, WriteError> {
        let spec = match &self.elements {
            Elements::Here(bytes) => return Ok(Loaded::Parts(vec![bytes.clone()])),
            Elements::Folded(fold) => return self.checked(fold.load(weights)?),
            Elements::Parameter(spec) => spec,
            Elements::Packed(spec, packing, order) => {
                let values = weights.load(&self.name, spec)?;
                let importance = weights.importance(&self.name);
                let packed = packed::pack(*packing, &values, *order, importance);
                return packed.map(Loaded::Parts).map_err(|source| {
                    let name = self.name.clone();
                    WriteError::Pack { name, source }
                });
            }
        };
        self.checked(weights.load(&self.name, spec)?)
    }

    /// `values`, which can be stored as what the constant consists of.
    fn checked(&self, values: Vec<f32>) -> Result<Loaded, WriteError> {
        assert_eq!(values.len() as u64, self.shape.iter().product::<u64>(), "{}", self.name);
        if self.element == DataType::F32 {
            return Ok(Loaded::F32(values));
        }
        assert_eq!(self.element, DataType::F16, "parameters are stored as f32 or f16");
        let is_beyond = |it: &f32| it.is_finite() && !f16::from_f32(*it).is_finite();
        match values.iter().position(is_beyond) {
            Some(index) => {
                let (name, found) = (self.name.clone(), values[index]);
                Err(WriteError::Overflow { name, index, found })
            }
            None => Ok(Loaded::F16(values)),
        }
    }

    /// The initializer without its elements.
    fn to_proto(&self) -> proto::Tensor {
        let dim = |&extent: &u64| i64::try_from(extent).expect("extents are below 2^32");
        proto::Tensor {
            dims: self.shape.iter().map(dim).collect(),
            data_type: self.element.into(),
            name: self.name.clone(),
            ..proto::Tensor::default()
        }
    }
}

/// The elements of a constant. What they are stored as is made while they are written, so that a large weight
/// is in memory once.
enum Loaded {
    /// As stored, one after the other.
    Parts(Vec<Vec<u8>>),
    /// Stored as they are.
    F32(Vec<f32>),
    /// Stored in 16 bits each, which they fit into.
    F16(Vec<f32>),
}

impl Loaded {
    /// Writes the elements, little-endian.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Parts(parts) => parts.iter().try_for_each(|it| out.write_all(it)),
            Self::F32(values) => write_each(values, out, f32::to_le_bytes),
            Self::F16(values) => write_each(values, out, |it| f16::from_f32(it).to_le_bytes()),
        }
    }
}

fn write_each<const N: usize>(
    values: &[f32],
    out: &mut impl Write,
    encode: fn(f32) -> [u8; N],
) -> io::Result<()> {
    let mut bytes = Vec::new();
    values.chunks(CHUNK_VALUES).try_for_each(|chunk| {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|it| encode(*it)));
        out.write_all(&bytes)
    })
}

/// The file of large weights in the making.
struct DataFile {
    path: PathBuf,
    file: BufWriter<File>,
    end: u64,
}

impl DataFile {
    fn create(path: PathBuf) -> Result<Self, WriteError> {
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file: BufWriter::new(file), end: 0 }),
            Err(source) => Err(WriteError::Io { path, source }),
        }
    }

    /// Adds a weight of `bytes`; says where it is, in the format's words.
    fn append(&mut self, loaded: &Loaded, bytes: u64) -> Result<Vec<Entry>, WriteError> {
        let offset = self.end.next_multiple_of(DATA_ALIGNMENT);
        let padding = usize::try_from(offset - self.end).expect("less than a page");
        let mut write = || {
            self.file.write_all(&vec![0; padding])?;
            loaded.write(&mut self.file)
        };
        write().map_err(|source| WriteError::Io { path: self.path.clone(), source })?;
        self.end = offset + bytes;
        let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
        Ok(vec![
            entry("location", DATA_FILE.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", bytes.to_string()),
        ])
    }

    fn finish(self) -> Result<(), WriteError> {
        let Self { path, file, .. } = self;
        let finish = || file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all();
        finish().map_err(|source| WriteError::Io { path, source })
    }
}
