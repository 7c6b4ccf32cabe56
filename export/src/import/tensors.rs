//! The tensors of a checkpoint, in one file or in several, and how a model's parameters are made of
//! them.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use aerie_models::{ModelConfig, ParameterSpec, census};
use serde::Deserialize;

use crate::{
    import::{ImportError, io_error, torch_file},
    onnx::{
        Weights, WeightsError,
        tensors::{Stored, TensorFile},
        weights::finite,
    },
};

/// Largest index of shards: a tensor takes about a hundred bytes in it.
const INDEX_BYTES_MAX: u64 = 16 << 20;
/// Most files of one checkpoint.
const SHARDS_MAX: usize = 1024;
/// Elements compared at a time.
const CHUNK_ELEMENTS: u64 = 1 << 20;

/// Every tensor of a checkpoint.
#[derive(Debug)]
pub(super) struct Tensors {
    /// The file that was asked for: it stands for all in messages.
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Which file a tensor is in.
    places: BTreeMap<String, usize>,
}

/// What Hugging Face writes beside shards.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Tensors {
    /// Opens a checkpoint: what its name ends in says what it is.
    ///
    /// # Errors
    /// If it is none of the known kinds, or its files contradict themselves or each other.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let name = path.file_name().map(|it| it.to_string_lossy()).unwrap_or_default();
        let file = if name.ends_with(".index.json") {
            return Self::sharded(path);
        } else if name.ends_with(".safetensors") {
            TensorFile::safetensors(path)?
        } else if name.ends_with(".pt") {
            torch_file::open(path)?
        } else {
            return Err(ImportError::Kind { path: path.to_owned() });
        };
        let places = file.tensors().keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { path: path.to_owned(), files: vec![file], places })
    }

    fn sharded(path: &Path) -> Result<Self, ImportError> {
        let index = |message: String| ImportError::Index { path: path.to_owned(), message };
        let found_bytes = fs::metadata(path).map_err(io_error(path))?.len();
        if INDEX_BYTES_MAX < found_bytes {
            return Err(index(format!("{found_bytes} bytes; at most {INDEX_BYTES_MAX} are read")));
        }
        let bytes = fs::read(path).map_err(io_error(path))?;
        let Index { weight_map } =
            serde_json::from_slice(&bytes).map_err(|it| index(it.to_string()))?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        if SHARDS_MAX < names.len() {
            return Err(index(format!("more than {SHARDS_MAX} files")));
        }
        if let Some(name) = names.iter().find(|name| !is_plain(name)) {
            return Err(index(format!("{name:?} is not the name of a file beside it")));
        }
        if let Some(name) = stray_shard(path, &names)? {
            return Err(index(format!("{name} lies beside it, but it does not name that file")));
        }
        let mut files = Vec::with_capacity(names.len());
        let mut places = BTreeMap::new();
        for (idx, name) in names.into_iter().enumerate() {
            let file = TensorFile::safetensors(&path.with_file_name(name))?;
            for tensor in file.tensors().keys() {
                match weight_map.get(tensor) {
                    Some(expected) if expected == name => {}
                    Some(expected) => {
                        return Err(index(format!("tensor {tensor} is in {name}, not {expected}")));
                    }
                    None => return Err(index(format!("tensor {tensor} of {name} is not in it"))),
                }
                places.insert(tensor.clone(), idx);
            }
            files.push(file);
        }
        match weight_map.iter().find(|(tensor, _)| !places.contains_key(*tensor)) {
            Some((tensor, name)) => Err(index(format!("tensor {tensor} is not in {name}"))),
            None => Ok(Self { path: path.to_owned(), files, places }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[u64]> {
        self.stored(name).map(|it| &*it.shape)
    }

    /// Whether two tensors of one shape hold the same values.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub(super) fn equal(&self, a: &str, b: &str) -> Result<bool, WeightsError> {
        let elements = self.stored(a).map_or(0, Stored::elements);
        let mut start = 0;
        while start < elements {
            let end = elements.min(start + CHUNK_ELEMENTS);
            if self.read(a, start..end)? != self.read(b, start..end)? {
                return Ok(false);
            }
            start = end;
        }
        Ok(true)
    }

    fn stored(&self, name: &str) -> Option<&Stored> {
        self.places.get(name).and_then(|&idx| self.files[idx].tensors().get(name))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<f32>, WeightsError> {
        match self.places.get(name) {
            Some(&idx) => self.files[idx].read(name, range),
            None => Err(WeightsError::Missing { path: self.path.clone(), name: name.to_owned() }),
        }
    }
}

/// A file that looks like a shard, beside an index that does not name it: the folder then holds two
/// checkpoints, or one and a half.
fn stray_shard(index: &Path, names: &BTreeSet<&String>) -> Result<Option<String>, ImportError> {
    let dir =
        index.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let name = entry.map_err(io_error(dir))?.file_name().to_string_lossy().into_owned();
        let is_shard = name.ends_with(".safetensors") && name.contains("-of-");
        if is_shard && !names.contains(&name) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether `name` can only mean a file in the same folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(std::path::Component::Normal(it)) if it == name)
        && parts.next().is_none()
        && name.ends_with(".safetensors")
}

/// How a parameter is made of a tensor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    /// Name of the tensor.
    pub(super) source: String,
    /// Shape that the tensor has to have.
    pub(super) shape: Vec<u64>,
    /// Which of two halves of the tensor is taken; none for all of it.
    pub(super) half: Option<u64>,
    /// Whether what is taken has the parameter's two axes swapped.
    pub(super) transpose: bool,
}

impl Rule {
    /// The parameter is the tensor.
    pub(super) fn copy(source: impl Into<String>, spec: &ParameterSpec) -> Self {
        let (source, shape) = (source.into(), spec.shape.clone());
        Self { source, shape, half: None, transpose: false }
    }

    /// The tensor has its one axis cut into blocks.
    pub(super) fn cut(&mut self, blocks: u32) {
        let elements: u64 = self.shape.iter().product();
        self.shape = vec![blocks.into(), elements / u64::from(blocks)];
    }
}

/// The parameters of a model, each made of a tensor of a checkpoint.
#[derive(Debug)]
pub(super) struct Mapped {
    tensors: Tensors,
    rules: BTreeMap<String, Rule>,
}

impl Mapped {
    /// Holds `tensors` to be what `config` needs, by the rules of its layout: no fewer, and no
    /// others than `spare`.
    ///
    /// # Errors
    /// [`WeightsError`], naming the first tensor that does not fit.
    pub(super) fn new(
        tensors: Tensors,
        config: &ModelConfig,
        spare: &[&str],
        rule: impl Fn(&str, &ParameterSpec) -> Rule,
    ) -> Result<Self, WeightsError> {
        let path = || tensors.path.clone();
        let mut rules = BTreeMap::new();
        for (name, spec) in census::parameters(config) {
            let rule = rule(name.as_str(), &spec);
            match tensors.shape(&rule.source) {
                Some(found) if found == rule.shape => {}
                Some(found) => {
                    let (found, expected) = (found.to_vec(), rule.shape);
                    let name = rule.source;
                    return Err(WeightsError::Shape { path: path(), name, found, expected });
                }
                None => {
                    let (name, expected) = (rule.source, rule.shape);
                    return Err(WeightsError::Absent { path: path(), name, expected });
                }
            }
            rules.insert(name.to_string(), rule);
        }
        let used: BTreeSet<&str> = rules.values().map(|it| &*it.source).collect();
        let unknown = tensors.names().find(|name| !used.contains(name) && !spare.contains(name));
        match unknown {
            Some(name) => Err(WeightsError::Unknown { path: path(), name: name.to_owned() }),
            None => Ok(Self { tensors, rules }),
        }
    }
}

impl Weights for Mapped {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        let Some(rule) = self.rules.get(name) else {
            let path = self.tensors.path.clone();
            return Err(WeightsError::Missing { path, name: name.to_owned() });
        };
        let elements: u64 = spec.shape.iter().product();
        let start = rule.half.unwrap_or(0) * elements;
        let values = self.tensors.read(&rule.source, start..start + elements)?;
        let values = finite(values, &self.tensors.path, &rule.source)?;
        let by_column = self.tensors.stored(&rule.source).is_some_and(|it| it.by_column);
        match (rule.transpose, by_column) {
            // Swapped by the layout and by whoever saved it: twice is not at all.
            (false, false) | (true, true) => Ok(values),
            (true, false) => Ok(transposed(&values, &spec.shape)),
            // The tensor's own axes, which may be more than the parameter's.
            (false, true) => Ok(transposed(&values, &rule.shape)),
        }
    }
}

/// `values` `[columns, rows]` as `shape`, which is `[rows, columns]`.
fn transposed(values: &[f32], shape: &[u64]) -> Vec<f32> {
    let &[rows, columns] = shape else { panic!("only matrices are transposed: {shape:?}") };
    let extent = |it: u64| usize::try_from(it).expect("extents are below 2^24");
    let (rows, columns) = (extent(rows), extent(columns));
    let mut swapped = vec![0.0; values.len()];
    // In squares, so that neither side is walked a cache line per element.
    const SQUARE: usize = 32;
    for row_start in (0..rows).step_by(SQUARE) {
        for column_start in (0..columns).step_by(SQUARE) {
            for row in row_start..rows.min(row_start + SQUARE) {
                for column in column_start..columns.min(column_start + SQUARE) {
                    swapped[row * columns + column] = values[column * rows + row];
                }
            }
        }
    }
    swapped
}
