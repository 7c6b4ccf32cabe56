//! Where the weights of a graph lie that are not in its own file: as much of the ONNX format as it
//! takes to find them.

#[cfg(test)]
mod tests;

use prost::Message;
use thiserror::Error;

use super::files::BundleFiles;

/// A weight in another file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct External {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) element: WeightType,
    pub(super) file: String,
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// What a weight consists of; the graphs that we write have no others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WeightType {
    F32,
    F16,
    U8,
}

/// What is wrong with a weight in another file, or with the graph that should say where it is.
#[derive(Debug, Error, PartialEq)]
pub enum ExternalError {
    #[error("the graph is no ONNX model")]
    Graph,
    #[error(
        "{name:?}: elements of type {found} in another file; FLOAT, FLOAT16 and UINT8 are expected"
    )]
    Element { name: String, found: i32 },
    #[error("{name:?}: {key} is missing or is not one")]
    Entry { name: String, key: &'static str },
    #[error(
        "{name:?}: {found} bytes are said to be in another file; its shape {shape:?} takes others"
    )]
    Bytes { name: String, found: usize, shape: Vec<i64> },
    #[error("{name:?} is in {file:?}, which the manifest does not name")]
    Unnamed { name: String, file: String },
    #[error(
        "{name:?} is {bytes} bytes from {offset} on in {file:?}: the file ends before, or they are not \
         aligned to elements"
    )]
    Place { name: String, file: String, offset: usize, bytes: usize },
}

/// The weights that `model` has in other files.
///
/// # Errors
/// [`ExternalError`] for the first that is not what it should be.
pub(super) fn externals(model: &[u8]) -> Result<Vec<External>, ExternalError> {
    let model = ModelProto::decode(model).map_err(|_| ExternalError::Graph)?;
    let initializers = model.graph.unwrap_or_default().initializer;
    initializers.into_iter().filter(|it| it.data_location == EXTERNAL).map(external).collect()
}

fn external(tensor: TensorProto) -> Result<External, ExternalError> {
    let TensorProto { name, dims: shape, data_type: found, .. } = tensor;
    let entry = |key| tensor.external_data.iter().find(|it| it.key == key).map(|it| &it.value);
    let missing = |key| ExternalError::Entry { name: name.clone(), key };
    let file = entry("location").ok_or_else(|| missing("location"))?.clone();
    let bytes = entry("length").and_then(|it| it.parse().ok()).ok_or_else(|| missing("length"))?;
    let offset = entry("offset").map_or(Some(0), |it| it.parse().ok());
    let offset = offset.ok_or_else(|| missing("offset"))?;
    let Some(element) = WeightType::of(found) else {
        return Err(ExternalError::Element { name, found });
    };
    let expected = shape.iter().try_fold(element.bytes(), |product, &extent| {
        product.checked_mul(usize::try_from(extent).ok()?)
    });
    if expected != Some(bytes) {
        return Err(ExternalError::Bytes { name, found: bytes, shape });
    }
    Ok(External { name, shape, element, file, offset, bytes })
}

impl External {
    /// The bytes of the weight, where `files` have them.
    ///
    /// # Errors
    /// If the manifest does not name the file, or the weight is not within it.
    pub(super) fn find<'a>(&self, files: &'a BundleFiles) -> Result<&'a [u8], ExternalError> {
        let Self { name, file, .. } = self;
        let bytes = files
            .find(file)
            .ok_or_else(|| ExternalError::Unnamed { name: name.clone(), file: file.clone() })?;
        self.of(bytes).ok_or_else(|| ExternalError::Place {
            name: name.clone(),
            file: file.clone(),
            offset: self.offset,
            bytes: self.bytes,
        })
    }

    /// The bytes of the weight in those of its file; none if the file ends before.
    fn of<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let bytes = file.get(self.offset..)?.get(..self.bytes)?;
        bytes.as_ptr().addr().is_multiple_of(self.element.bytes()).then_some(bytes)
    }
}

impl WeightType {
    /// By its number in `TensorProto.DataType`.
    fn of(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::F32),
            2 => Some(Self::U8),
            10 => Some(Self::F16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

// Messages of onnx.proto, with the fields that are read here; others are skipped.

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}
