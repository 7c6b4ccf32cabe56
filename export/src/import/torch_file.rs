//! Files of `torch.save`: a zip archive with a pickle that describes tensors, and a file for the
//! buffer of each. Everything is stored, not compressed, so elements are read where they lie.
//!
//! ```text
//! <any>/data.pkl      names, shapes, strides; see `pickle`
//! <any>/data/<key>    one buffer, little-endian
//! <any>/byteorder     "little"; older files lack it and are little-endian too
//! ```

#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::BufReader,
    os::unix::fs::FileExt,
    path::Path,
};

use zip::{CompressionMethod, ZipArchive};

use crate::{
    import::{
        ImportError, io_error,
        pickle::{self, PickledTensor},
    },
    onnx::tensors::{Stored, TensorFile},
};

/// Most files in an archive: a model has a few hundred tensors.
const FILES_MAX: usize = 1 << 16;
/// Largest pickle: a tensor takes a few hundred bytes in it.
const PICKLE_BYTES_MAX: u64 = 4 << 20;

/// Opens the file at `path`; its tensors are f32, f16 or bf16.
///
/// # Errors
/// If it is not such a file, or holds something else than tensors.
pub(super) fn open(path: &Path) -> Result<TensorFile, ImportError> {
    let file = File::open(path).map_err(io_error(path))?;
    let members = members(path, &file)?;
    let mut pickles = members.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(root), None) = (pickles.next(), pickles.next()) else {
        return Err(archive(path, "there is not exactly one data.pkl in it"));
    };
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && read(path, &file, *order)? != b"little"
    {
        return Err(archive(path, "its elements are not little-endian"));
    }
    let tensors = pickle::read(&read(path, &file, members[&format!("{root}data.pkl")])?)
        .map_err(|source| ImportError::Pickle { path: path.to_owned(), source })?;
    let mut stored = BTreeMap::new();
    for (name, tensor) in tensors {
        let key = format!("{root}data/{}", tensor.storage.key);
        let Some(buffer) = members.get(&key) else {
            return Err(archive(path, &format!("tensor {name}: there is no {key} in it")));
        };
        let found = locate(&tensor, *buffer)
            .map_err(|message| archive(path, &format!("tensor {name}: {message}")))?;
        stored.insert(name, found);
    }
    Ok(TensorFile::new(path, file, stored)?)
}

/// A file within the archive.
#[derive(Clone, Copy, Debug)]
struct Member {
    offset: u64,
    bytes: u64,
}

/// Where each file of the archive lies.
fn members(path: &Path, file: &File) -> Result<HashMap<String, Member>, ImportError> {
    let error = |it: zip::result::ZipError| archive(path, &it.to_string());
    let file = file.try_clone().map_err(io_error(path))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(error)?;
    if FILES_MAX < zip.len() {
        return Err(archive(path, &format!("it has more than {FILES_MAX} files")));
    }
    let mut members = HashMap::with_capacity(zip.len());
    for idx in 0..zip.len() {
        let member = zip.by_index_raw(idx).map_err(error)?;
        let name = member.name().to_owned();
        let is_plain = member.compression() == CompressionMethod::Stored
            && !member.encrypted()
            && member.compressed_size() == member.size();
        let (Some(offset), true) = (member.data_start(), is_plain) else {
            return Err(archive(path, &format!("{name} is compressed or encrypted")));
        };
        let bytes = member.size();
        if members.insert(name.clone(), Member { offset, bytes }).is_some() {
            return Err(archive(path, &format!("{name} is in it twice")));
        }
    }
    Ok(members)
}

/// Reads a small file of the archive.
fn read(path: &Path, file: &File, member: Member) -> Result<Vec<u8>, ImportError> {
    if PICKLE_BYTES_MAX < member.bytes {
        return Err(archive(path, &format!("its pickle has more than {PICKLE_BYTES_MAX} bytes")));
    }
    let mut bytes = vec![0; usize::try_from(member.bytes).expect("the limit fits")];
    file.read_exact_at(&mut bytes, member.offset).map_err(io_error(path))?;
    Ok(bytes)
}

/// Finds a tensor within its buffer.
fn locate(tensor: &PickledTensor, buffer: Member) -> Result<Stored, String> {
    let PickledTensor { storage, offset, shape, strides } = tensor;
    let element_bytes = storage.element.bytes();
    if storage.count.checked_mul(element_bytes) != Some(buffer.bytes) {
        return Err(format!(
            "its buffer has {} bytes; {} elements of {element_bytes} bytes are expected",
            buffer.bytes, storage.count
        ));
    }
    let elements = shape.iter().try_fold(1u64, |product, &it| product.checked_mul(it));
    let end = elements.and_then(|it| it.checked_add(*offset));
    if end.is_none_or(|end| storage.count < end) {
        return Err(format!("shape {shape:?} reaches beyond its buffer"));
    }
    let by_column = !is_dense(shape.iter().zip(strides).rev());
    // What was transposed before it was saved keeps its buffer and swaps its strides.
    if by_column && !(shape.len() == 2 && is_dense(shape.iter().zip(strides))) {
        return Err(format!("strides {strides:?} for shape {shape:?} leave gaps"));
    }
    // Within the buffer, and so below its bytes.
    let offset = buffer.offset.saturating_add(offset * element_bytes);
    Ok(Stored { element: storage.element, shape: shape.clone(), offset, by_column })
}

/// Whether axes, the fastest first, lie without gaps; the stride of an extent of 1 says nothing.
fn is_dense<'a>(axes: impl Iterator<Item = (&'a u64, &'a u64)>) -> bool {
    let mut expected = 1u64;
    for (&extent, &stride) in axes {
        if 1 < extent && stride != expected {
            return false;
        }
        expected = expected.saturating_mul(extent);
    }
    true
}

fn archive(path: &Path, message: &str) -> ImportError {
    ImportError::Archive { path: path.to_owned(), message: message.to_owned() }
}
