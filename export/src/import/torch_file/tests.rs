//! A real archive, and what becomes of it when its parts do not fit each other.

use std::{
    fs,
    io::{Cursor, Read, Write},
};

use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;
use crate::import::tests::GRIFFIN_PT;

#[test]
fn types_and_strides_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("griffin.pt");
    fs::write(&path, GRIFFIN_PT).unwrap();
    let file = open(&path).unwrap();
    let stored = |name: &str| file.tensors()[name].clone();
    let swapped = stored("blocks.0.recurrent_block.linear_x.weight");
    assert!(swapped.by_column && swapped.shape == [8, 8], "{swapped:?}");
    let elements =
        [0, 1, 2].map(|layer| stored(&format!("blocks.{layer}.mlp_block.ffw_up.w")).element);
    use crate::onnx::proto::DataType::{BF16, F16, F32};
    assert_eq!(elements, [F32, BF16, F16]);
    let shape = stored("blocks.2.attention_block.proj_k.weight").shape;
    assert_eq!(shape, [4, 8]);
}

#[test]
fn parts_have_to_fit_each_other() {
    check(|name, bytes| (!name.ends_with("data.pkl")).then_some(bytes), "not exactly one data.pkl");
    check(
        |name, bytes| Some(if name.ends_with("byteorder") { b"big".to_vec() } else { bytes }),
        "not little-endian",
    );
    check(|name, bytes| (!name.ends_with("data/0")).then_some(bytes), "there is no griffin/data/0");
    check(
        |name, bytes| Some(if name.ends_with("data/0") { bytes[4..].to_vec() } else { bytes }),
        "tensor embedder.input_embedding: its buffer has 508 bytes; 128 elements of 4 bytes",
    );
    check(
        |name, bytes| Some(if name.ends_with(".pkl") { vec![b'N'; 5 << 20] } else { bytes }),
        "its pickle has more than 4194304 bytes",
    );
    check(
        |name, bytes| Some(if name.ends_with(".pkl") { b"cos\nsystem\n.".to_vec() } else { bytes }),
        "the pickle names os.system",
    );
}

#[test]
fn files_that_are_cut_or_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("griffin.pt");
    for length in (0..GRIFFIN_PT.len()).step_by(97) {
        fs::write(&path, &GRIFFIN_PT[..length]).unwrap();
        assert!(open(&path).is_err(), "cut after {length} bytes");
    }
    // What PyTorch wrote before 1.6 is a bare pickle.
    fs::write(&path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    assert!(open(&path).is_err());
}

#[test]
fn strides_that_leave_gaps_are_refused() {
    let locate = |offset, shape: &[u64], strides: &[u64]| {
        let storage = pickle::Storage {
            element: crate::onnx::proto::DataType::F32,
            key: "0".into(),
            count: 12,
        };
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        let tensor = PickledTensor { storage, offset, shape, strides };
        locate(&tensor, Member { offset: 100, bytes: 48 })
    };
    assert_eq!(locate(2, &[2, 5], &[5, 1]).unwrap().offset, 108);
    assert!(!locate(0, &[1, 12], &[99, 1]).unwrap().by_column);
    assert!(!locate(0, &[3, 1, 4], &[4, 77, 1]).unwrap().by_column);
    assert!(locate(0, &[3, 4], &[1, 3]).unwrap().by_column);
    assert!(locate(3, &[2, 5], &[5, 1]).unwrap_err().contains("beyond its buffer"));
    assert!(locate(u64::MAX, &[2], &[1]).unwrap_err().contains("beyond its buffer"));
    assert!(locate(0, &[1 << 40, 1 << 40], &[1, 1]).unwrap_err().contains("beyond its buffer"));
    for (shape, strides) in [(&[6][..], &[2][..]), (&[2, 3], &[3, 0]), (&[2, 2, 3], &[1, 2, 4])] {
        assert!(locate(0, shape, strides).unwrap_err().contains("leave gaps"), "{strides:?}");
    }
}

/// Changes the archive's files, or leaves them out, and expects `message`.
#[track_caller]
fn check(change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>, message: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("griffin.pt");
    fs::write(&path, changed(change)).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

/// The archive with its files changed, or left out.
pub(in crate::import) fn changed(change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut zip = ZipArchive::new(Cursor::new(GRIFFIN_PT)).unwrap();
    let mut changed = ZipWriter::new(Cursor::new(Vec::new()));
    for idx in 0..zip.len() {
        let mut member = zip.by_index(idx).unwrap();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        if let Some(bytes) = change(member.name(), bytes) {
            let options =
                SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            changed.start_file(member.name(), options).unwrap();
            changed.write_all(&bytes).unwrap();
        }
    }
    changed.finish().unwrap().into_inner()
}

/// The archive's pickle.
pub(in crate::import) fn pickle() -> Vec<u8> {
    let mut zip = ZipArchive::new(Cursor::new(GRIFFIN_PT)).unwrap();
    let mut pickle = Vec::new();
    zip.by_name("griffin/data.pkl").unwrap().read_to_end(&mut pickle).unwrap();
    pickle
}
