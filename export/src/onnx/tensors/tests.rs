//! Elements in chunks and parts; tensors that are not where they are said to be.

use std::{fs, io::Write};

use super::*;

#[test]
fn tensor_of_many_chunks_is_read_whole_and_in_parts() {
    let count = 3 * CHUNK_BYTES as u64 / 4 + 5;
    let values: Vec<f32> = (0..count).map(|it| it as f32).collect();
    let file = file_of(&values.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>());
    let tensor = stored(DataType::F32, vec![count], 0);
    let file = TensorFile::new("x".as_ref(), file, [("x".to_owned(), tensor)].into()).unwrap();
    assert_eq!(file.read("x", 0..count).unwrap(), values);
    assert_eq!(file.read("x", 7..9).unwrap(), [7.0, 8.0]);
    assert!(file.read("x", 9..9).unwrap().is_empty());
}

#[test]
fn bf16_and_f16_are_read_exactly() {
    let values = [0.0, -1.5, 3.0e38, f32::from_bits(0x0001_0000)];
    let bytes: Vec<u8> = values.iter().flat_map(|&it| bf16::from_f32(it).to_le_bytes()).collect();
    check(DataType::BF16, &bytes, &values.map(|it| bf16::from_f32(it).to_f32()));
    let values = [0.0, -1.5, 65504.0, 6e-8];
    let bytes: Vec<u8> = values.iter().flat_map(|&it| f16::from_f32(it).to_le_bytes()).collect();
    check(DataType::F16, &bytes, &values.map(|it| f16::from_f32(it).to_f32()));
}

#[test]
fn tensors_beyond_the_file_or_over_each_other_are_refused() {
    let open = |tensors: &[(&str, Stored)]| {
        let tensors = tensors.iter().map(|(name, it)| ((*name).to_owned(), it.clone())).collect();
        TensorFile::new("x".as_ref(), file_of(&[0; 16]), tensors).map_err(|it| it.to_string())
    };
    let f32 = |shape: &[u64], offset| stored(DataType::F32, shape.to_vec(), offset);
    assert!(open(&[("a", f32(&[2], 0)), ("b", f32(&[1, 2], 8)), ("c", f32(&[0], 4))]).is_ok());
    for tensor in [f32(&[2], 9), f32(&[5], 0), f32(&[1 << 40, 1 << 40], 0), f32(&[1], u64::MAX)] {
        let error = open(&[("a", tensor)]).unwrap_err();
        assert!(error.ends_with("tensor a reaches beyond the file's 16 bytes"), "{error}");
    }
    let error = open(&[("a", f32(&[2], 0)), ("b", f32(&[2], 4))]).unwrap_err();
    assert!(error.ends_with("tensors a and b lie over each other"), "{error}");
}

#[track_caller]
fn check(element: DataType, bytes: &[u8], expected: &[f32]) {
    let mut values = Vec::new();
    Elements { element, count: expected.len() as u64 }.parse(bytes, &mut values);
    assert_eq!(values, expected);
}

fn stored(element: DataType, shape: Vec<u64>, offset: u64) -> Stored {
    Stored { element, shape, offset, by_column: false }
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    fs::File::open(file.path()).unwrap()
}
