//! Tensors in files: where each lies, and its elements as f32. Whose tensors they are, and whether
//! they are the right ones, is for those who open the file.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path as FilePath, PathBuf},
};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};

use crate::onnx::{proto::DataType, weights::WeightsError};

/// Largest header of a checkpoint: what the format's own reader allows.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Bytes read at a time: the elements are what is large, and they are not to be held twice.
const CHUNK_BYTES: usize = 1 << 20;

/// A file of which it is known where its tensors lie.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) element: DataType,
    pub(crate) shape: Vec<u64>,
    /// Where it begins, in bytes from the start of the file.
    pub(crate) offset: u64,
    /// Whether its two axes lie column by column; otherwise, a tensor is row-major.
    pub(crate) by_column: bool,
}

impl TensorFile {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// [`WeightsError`], where its header does not describe it or a tensor is not f32, f16 or bf16.
    pub(crate) fn safetensors(path: &FilePath) -> Result<Self, WeightsError> {
        let mut file = File::open(path).map_err(io_error(path))?;
        let file_bytes = file.metadata().map_err(io_error(path))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io_error(path))?;
        let header_bytes = u64::from_le_bytes(length);
        if HEADER_BYTES_MAX < header_bytes {
            let (path, max_bytes) = (path.to_owned(), HEADER_BYTES_MAX);
            return Err(WeightsError::HeaderTooLarge {
                path,
                found_bytes: header_bytes,
                max_bytes,
            });
        }
        let data_offset = length.len() as u64 + header_bytes;
        let cut = |expected_bytes| {
            let (path, found_bytes) = (path.to_owned(), file_bytes);
            WeightsError::Length { path, found_bytes, expected_bytes }
        };
        if file_bytes < data_offset {
            return Err(cut(data_offset));
        }
        let mut header = vec![0; usize::try_from(header_bytes).expect("the limit fits")];
        file.read_exact(&mut header).map_err(io_error(path))?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|source| WeightsError::Header { path: path.to_owned(), source })?;
        // Parsing has held each tensor to its shape and type, and all to lie one after the other.
        let expected_bytes = data_offset.saturating_add(header.data_len() as u64);
        if file_bytes != expected_bytes {
            return Err(cut(expected_bytes));
        }

        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors() {
            let element = match info.dtype {
                Dtype::F32 => DataType::F32,
                Dtype::F16 => DataType::F16,
                Dtype::BF16 => DataType::BF16,
                other => {
                    let (path, found) = (path.to_owned(), format!("{other:?}"));
                    return Err(WeightsError::Dtype { path, name, found });
                }
            };
            let shape = info.shape.iter().map(|&extent| extent as u64).collect();
            let offset = data_offset + info.data_offsets.0 as u64;
            tensors.insert(name, Stored { element, shape, offset, by_column: false });
        }
        Ok(Self { path: path.to_owned(), file, tensors })
    }

    /// A file whose `tensors` somebody else has found.
    ///
    /// # Errors
    /// If one lies beyond the file's end, or two lie over each other.
    pub(crate) fn new(
        path: &FilePath,
        file: File,
        tensors: BTreeMap<String, Stored>,
    ) -> Result<Self, WeightsError> {
        let file_bytes = file.metadata().map_err(io_error(path))?.len();
        let mut taken = Vec::with_capacity(tensors.len());
        for (name, tensor) in &tensors {
            let end = tensor.bytes().and_then(|bytes| tensor.offset.checked_add(bytes));
            match end {
                Some(end) if end <= file_bytes => taken.push((tensor.offset, end, name)),
                _ => {
                    let (path, name) = (path.to_owned(), name.clone());
                    return Err(WeightsError::Outside { path, name, file_bytes });
                }
            }
        }
        taken.retain(|(start, end, _)| start < end);
        taken.sort_unstable();
        if let Some(pair) = taken.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            let (path, name, other) = (path.to_owned(), pair[0].2.clone(), pair[1].2.clone());
            return Err(WeightsError::Overlap { path, name, other });
        }
        Ok(Self { path: path.to_owned(), file, tensors })
    }

    pub(crate) fn path(&self) -> &FilePath {
        &self.path
    }

    pub(crate) fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// The elements of `name` that lie in `range`, in the order of the file.
    ///
    /// # Errors
    /// If there is no such tensor, or it cannot be read.
    ///
    /// # Panics
    /// If the tensor has fewer elements.
    pub(crate) fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<f32>, WeightsError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(WeightsError::Missing { path: self.path.clone(), name: name.to_owned() });
        };
        assert!(range.end <= tensor.elements(), "{name} has fewer elements than {range:?}");
        let elements = Elements { element: tensor.element, count: range.end - range.start };
        let offset = tensor.offset + range.start * tensor.element.bytes();
        elements.read(&self.file, offset).map_err(io_error(&self.path))
    }
}

impl Stored {
    /// Number of elements, of a tensor that lies within its file.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of the elements; none if there is no such number.
    fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, &it| product.checked_mul(it));
        elements?.checked_mul(self.element.bytes())
    }
}

/// What bytes are to be parsed as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elements {
    /// One of f32, f16 and bf16.
    pub(crate) element: DataType,
    pub(crate) count: u64,
}

impl Elements {
    /// Reads the elements that begin at `offset`.
    pub(crate) fn read(self, file: &File, mut offset: u64) -> io::Result<Vec<f32>> {
        let mut values = Vec::with_capacity(usize::try_from(self.count).expect("64 bits"));
        let mut bytes_left = self.count * self.element.bytes();
        let mut chunk = vec![0; CHUNK_BYTES];
        while 0 < bytes_left {
            let n_bytes = usize::try_from(bytes_left).expect("64 bits").min(CHUNK_BYTES);
            file.read_exact_at(&mut chunk[..n_bytes], offset)?;
            self.parse(&chunk[..n_bytes], &mut values);
            offset += n_bytes as u64;
            bytes_left -= n_bytes as u64;
        }
        Ok(values)
    }

    /// Appends what `bytes` say.
    pub(crate) fn parse(self, bytes: &[u8], values: &mut Vec<f32>) {
        let pairs = || bytes.as_chunks().0.iter();
        match self.element {
            DataType::F32 => {
                values.extend(bytes.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)));
            }
            DataType::F16 => values.extend(pairs().map(|it| f16::from_le_bytes(*it).to_f32())),
            DataType::BF16 => values.extend(pairs().map(|it| bf16::from_le_bytes(*it).to_f32())),
            other => unreachable!("{other:?} was refused when the file was opened"),
        }
    }
}

pub(crate) fn io_error(path: &FilePath) -> impl Fn(io::Error) -> WeightsError {
    |source| WeightsError::Io { path: path.to_owned(), source }
}
