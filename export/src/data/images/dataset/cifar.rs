//! CIFAR's own binary files.
//!
//! ```text
//! CIFAR-10:  label u8 | red [32, 32] | green [32, 32] | blue [32, 32]
//! CIFAR-100: coarse label u8 | fine label u8 | planes as above; the fine label is used
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use aerie_models::images::preprocessing::Extent;

use super::{Dataset, DatasetError, FILE_BYTES_MAX, file_name, numbered, read_file};

const EXTENT: Extent = Extent { height: 32, width: 32 };
const PLANE_BYTES: usize = 32 * 32;

/// What the two data sets differ in.
#[derive(Clone, Copy, Debug)]
struct Form {
    label_bytes: usize,
    classes: u32,
    /// File of the classes' names.
    names: &'static str,
}

const CIFAR_10: Form = Form { label_bytes: 1, classes: 10, names: "batches.meta.txt" };
const CIFAR_100: Form = Form { label_bytes: 2, classes: 100, names: "fine_label_names.txt" };

pub(super) fn read(files: &[PathBuf]) -> Result<Dataset, DatasetError> {
    let form = files.first().map_or(CIFAR_10, |it| form(it));
    let (mut rgb, mut labels) = (Vec::new(), Vec::new());
    for path in files {
        read_records(path, &read_file(path, FILE_BYTES_MAX)?, form, &mut rgb, &mut labels)?;
    }
    let classes = files.first().and_then(|it| names(&it.with_file_name(form.names), form));
    let classes = classes.unwrap_or_else(|| numbered(form.classes));
    Ok(Dataset::packed(EXTENT, rgb, labels, classes))
}

/// CIFAR-100 calls its files `train.bin` and `test.bin`.
fn form(path: &Path) -> Form {
    match file_name(path).as_str() {
        "train.bin" | "test.bin" => CIFAR_100,
        _ => CIFAR_10,
    }
}

fn read_records(
    path: &Path,
    bytes: &[u8],
    form: Form,
    rgb: &mut Vec<u8>,
    labels: &mut Vec<u32>,
) -> Result<(), DatasetError> {
    let record_bytes = form.label_bytes + 3 * PLANE_BYTES;
    if !bytes.len().is_multiple_of(record_bytes) {
        let (path, found_bytes) = (path.to_owned(), bytes.len());
        return Err(DatasetError::Records { path, found_bytes, record_bytes });
    }
    for (row, record) in bytes.chunks_exact(record_bytes).enumerate() {
        let (label, planes) = record.split_at(form.label_bytes);
        let label = u32::from(label[form.label_bytes - 1]);
        if form.classes <= label {
            return Err(DatasetError::Cell {
                path: path.to_owned(),
                row,
                column: "label".to_owned(),
                expected: format!("a number below {}", form.classes),
                found: label.to_string(),
            });
        }
        labels.push(label);
        rgb.extend(
            (0..PLANE_BYTES).flat_map(|at| [0, 1, 2].map(|it| planes[it * PLANE_BYTES + at])),
        );
    }
    Ok(())
}

/// Names of the classes, if there is a file with one for each.
fn names(path: &Path, form: Form) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    let lines = text.lines().map(str::trim).filter(|it| !it.is_empty());
    let names: Vec<String> = lines.map(str::to_owned).collect();
    (names.len() == form.classes as usize).then_some(names)
}
