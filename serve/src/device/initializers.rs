//! Where the weights of a graph lie that are not in its own file: as much of the ONNX format as it
//! takes to find them.

#[cfg(test)]
mod tests;

use prost::Message;

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

/// The weights that `model` has in other files. One that is not what it should be is left out: ONNX
/// Runtime then looks for it and says what is wrong.
pub(super) fn externals(model: &[u8]) -> Vec<External> {
    let graph = ModelProto::decode(model).ok().and_then(|model| model.graph);
    graph.unwrap_or_default().initializer.into_iter().filter_map(external).collect()
}

fn external(tensor: TensorProto) -> Option<External> {
    if tensor.data_location != EXTERNAL {
        return None;
    }
    let entry = |key: &str| tensor.external_data.iter().find(|it| it.key == key);
    let number = |key: &str| entry(key)?.value.parse::<usize>().ok();
    let element = WeightType::of(tensor.data_type)?;
    let elements = tensor
        .dims
        .iter()
        .try_fold(1usize, |product, &extent| product.checked_mul(usize::try_from(extent).ok()?))?;
    let bytes = number("length")?;
    let is_whole = elements.checked_mul(element.bytes()) == Some(bytes);
    is_whole.then_some(())?;
    Some(External {
        file: entry("location")?.value.clone(),
        offset: number("offset").unwrap_or_default(),
        name: tensor.name,
        shape: tensor.dims,
        element,
        bytes,
    })
}

impl External {
    /// The bytes of the weight in those of its file; none if the file ends before.
    pub(super) fn of<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
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
