//! Pictures and labels as Hugging Face keeps them: rows of `{bytes, path}` and a class.

use std::{
    fs::File,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    errors::ParquetError,
    file::reader::{FileReader, RowGroupReader, SerializedFileReader},
};
use serde_json::Value;

use super::{
    CLASSES_MAX, Dataset, DatasetError, FILE_BYTES_MAX, PICTURES_MAX, Pictures, Places, numbered,
};

/// Columns, by the names that data sets give them.
const PICTURE_COLUMNS: [&str; 2] = ["img", "image"];
const LABEL_COLUMNS: [&str; 3] = ["label", "labels", "fine_label"];

/// Rows of all files.
#[derive(Debug, Default)]
struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    labels: Vec<u32>,
    /// For each class, the folder that the path of its first picture ends with.
    folders: Vec<Option<String>>,
    /// Names of the classes, where a file's metadata tells them.
    names: Option<Vec<String>>,
    places: Places,
}

pub(super) fn read(files: &[PathBuf]) -> Result<Dataset, DatasetError> {
    let mut rows = Rows::default();
    for path in files {
        // Where a file is damaged the library has assertions beside its errors.
        let read = panic::catch_unwind(AssertUnwindSafe(|| rows.read(path)));
        read.unwrap_or_else(|_| Err(damaged(path)))?;
        rows.places.files.push((path.clone(), rows.ends.len()));
    }
    let classes = rows.classes();
    let Rows { bytes, ends, labels, places, .. } = rows;
    let pictures = Pictures::Encoded { bytes, ends, places };
    Dataset::whole(pictures, labels, classes).pack()
}

fn damaged(path: &Path) -> DatasetError {
    let source = ParquetError::General("the file is damaged".to_owned());
    DatasetError::Parquet { path: path.to_owned(), source }
}

/// Leaf columns of a file.
#[derive(Clone, Debug)]
struct Columns {
    bytes: usize,
    path: Option<usize>,
    label: usize,
    picture_name: String,
    label_name: String,
}

impl Rows {
    fn read(&mut self, path: &Path) -> Result<(), DatasetError> {
        let parquet_error = |source| DatasetError::Parquet { path: path.to_owned(), source };
        let io_error = |source| DatasetError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        let found_bytes = file.metadata().map_err(io_error)?.len();
        if FILE_BYTES_MAX < found_bytes + self.bytes.len() as u64 {
            let bytes_max = FILE_BYTES_MAX;
            return Err(DatasetError::TooLarge { path: path.to_owned(), found_bytes, bytes_max });
        }
        let reader = SerializedFileReader::new(file).map_err(parquet_error)?;
        if !lie_within(&reader, found_bytes) {
            return Err(damaged(path));
        }
        let columns = columns(path, &reader)?;
        let metadata = reader.metadata().file_metadata().key_value_metadata();
        let names = metadata.into_iter().flatten().find(|it| it.key == "huggingface");
        let names = names.and_then(|it| class_names(it.value.as_deref()?, &columns.label_name));
        self.names = self.names.take().or(names);
        self.places.column = format!("{}.bytes", columns.picture_name);
        let mut row = 0;
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group).map_err(parquet_error)?;
            row += self.read_group(path, &*group, &columns, row)?;
        }
        Ok(())
    }

    /// Takes the rows of one group, the first of which is row `first` of the file.
    fn read_group(
        &mut self,
        path: &Path,
        group: &dyn RowGroupReader,
        columns: &Columns,
        first: usize,
    ) -> Result<usize, DatasetError> {
        let parquet_error = |source| DatasetError::Parquet { path: path.to_owned(), source };
        let refused = |row: usize, column: &str, expected: String, found: String| {
            let (path, row, column) = (path.to_owned(), first + row, column.to_owned());
            DatasetError::Cell { path, row, column, expected, found }
        };
        let pictures = byte_arrays(group, columns.bytes).map_err(parquet_error)?;
        let labels = integers(group, columns.label).map_err(parquet_error)?;
        let paths = columns.path.map(|it| byte_arrays(group, it));
        let paths = paths.transpose().map_err(parquet_error)?.unwrap_or_default();
        let named = self.names.as_ref().and_then(|it| u32::try_from(it.len()).ok());
        let classes = named.unwrap_or(CLASSES_MAX).min(CLASSES_MAX);
        let count = pictures.len();
        if labels.len() != count || PICTURES_MAX < self.ends.len() + count {
            let error = ParquetError::General("columns of a row group differ in length".to_owned());
            return Err(parquet_error(error));
        }
        for (row, (picture, label)) in pictures.iter().zip(labels).enumerate() {
            let Some(picture) = picture else {
                let column = format!("{}.bytes", columns.picture_name);
                return Err(refused(row, &column, "a JPEG or PNG".to_owned(), "null".to_owned()));
            };
            let class = label.and_then(|it| u32::try_from(it).ok()).filter(|it| *it < classes);
            let Some(class) = class else {
                let expected = format!("a number below {classes}");
                let found = label.map_or_else(|| "null".to_owned(), |it| it.to_string());
                return Err(refused(row, &columns.label_name, expected, found));
            };
            self.bytes.extend(picture.data());
            self.ends.push(self.bytes.len());
            self.labels.push(class);
            let path = paths.get(row).and_then(Option::as_ref);
            self.note_folder(class as usize, path.and_then(|it| it.as_utf8().ok()));
        }
        Ok(count)
    }

    /// Remembers the folder in which the first picture of a class lay.
    fn note_folder(&mut self, class: usize, path: Option<&str>) {
        if self.folders.len() <= class {
            self.folders.resize(class + 1, None);
        }
        if self.folders[class].is_none() {
            let folder = path.and_then(|it| it.rsplit('/').nth(1)).filter(|it| !it.is_empty());
            self.folders[class] = folder.map(str::to_owned);
        }
    }

    /// Names from the metadata, else from the folders of the pictures, else numbers.
    fn classes(&self) -> Vec<String> {
        let needed = self.folders.len();
        if let Some(names) = self.names.as_ref().filter(|it| needed <= it.len()) {
            return names.clone();
        }
        let folders: Option<Vec<String>> = self.folders.iter().cloned().collect();
        let differ = |it: &Vec<String>| {
            let mut sorted = it.clone();
            sorted.sort();
            sorted.dedup();
            sorted.len() == it.len()
        };
        // `CLASSES_MAX` bounds the count.
        folders
            .filter(differ)
            .unwrap_or_else(|| numbered(u32::try_from(needed).unwrap_or_default()))
    }
}

/// Whether all columns lie where the file has bytes, before memory is taken for them.
fn lie_within(reader: &impl FileReader, file_bytes: u64) -> bool {
    let groups = reader.metadata().row_groups().iter();
    groups.flat_map(|it| it.columns()).all(|it| {
        let start = it.dictionary_page_offset().unwrap_or_else(|| it.data_page_offset());
        let bounds = [start, it.data_page_offset(), it.compressed_size()].map(u64::try_from);
        let [Ok(start), Ok(_), Ok(bytes)] = bounds else { return false };
        start.checked_add(bytes).is_some_and(|end| end <= file_bytes)
    })
}

fn columns(path: &Path, reader: &impl FileReader) -> Result<Columns, DatasetError> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let leaves: Vec<String> = schema.columns().iter().map(|it| it.path().string()).collect();
    let find = |wanted: &str| {
        let leaf = leaves.iter().position(|it| it == wanted);
        // Lists have several values in a row; neither pictures nor labels do.
        leaf.filter(|it| schema.column(*it).max_rep_level() == 0)
    };
    let missing = |expected| DatasetError::Column {
        path: path.to_owned(),
        expected,
        found: leaves.join(", "),
    };
    let picture = PICTURE_COLUMNS.iter().find_map(|it| Some((it, find(&format!("{it}.bytes"))?)));
    let (picture_name, bytes) = picture.ok_or_else(|| missing("img.bytes or image.bytes"))?;
    let label = LABEL_COLUMNS.iter().find_map(|it| Some((it, find(it)?)));
    let (label_name, label) = label.ok_or_else(|| missing("label, labels or fine_label"))?;
    Ok(Columns {
        bytes,
        path: find(&format!("{picture_name}.path")),
        label,
        picture_name: (*picture_name).to_owned(),
        label_name: (*label_name).to_owned(),
    })
}

/// Names of the classes from what Hugging Face's `datasets` writes beside a schema.
fn class_names(text: &str, label: &str) -> Option<Vec<String>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let names = value.get("info")?.get("features")?.get(label)?.get("names")?.as_array()?;
    names.iter().map(|it| Some(it.as_str()?.to_owned())).collect()
}

fn byte_arrays(
    group: &dyn RowGroupReader,
    column: usize,
) -> Result<Vec<Option<ByteArray>>, ParquetError> {
    match group.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(reader) => values(reader, rows(group)?),
        _ => Err(ParquetError::General(format!("column {column} does not hold bytes"))),
    }
}

fn integers(group: &dyn RowGroupReader, column: usize) -> Result<Vec<Option<i64>>, ParquetError> {
    match group.get_column_reader(column)? {
        ColumnReader::Int64ColumnReader(reader) => values(reader, rows(group)?),
        ColumnReader::Int32ColumnReader(reader) => {
            let values = values(reader, rows(group)?)?;
            Ok(values.into_iter().map(|it| it.map(i64::from)).collect())
        }
        _ => Err(ParquetError::General(format!("column {column} does not hold integers"))),
    }
}

fn rows(group: &dyn RowGroupReader) -> Result<usize, ParquetError> {
    let rows = usize::try_from(group.metadata().num_rows()).ok();
    let rows = rows.filter(|it| *it <= PICTURES_MAX);
    rows.ok_or_else(|| ParquetError::General("the rows of a group cannot be counted".to_owned()))
}

/// Values of a column without lists, none where they are null.
fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
) -> Result<Vec<Option<T::T>>, ParquetError> {
    /// Values asked for at one time; what a header promises takes no memory before it is there.
    const CHUNK: usize = 1024;
    let mut found = Vec::new();
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    while found.len() < rows {
        values.clear();
        levels.clear();
        let wanted = CHUNK.min(rows - found.len());
        let (records, count, _) =
            reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            break;
        }
        // A column that must have values has no levels.
        if count == records {
            found.extend(values.drain(..).map(Some));
        } else {
            let top = levels.iter().copied().max().unwrap_or_default();
            let mut values = values.drain(..);
            found.extend(levels.iter().map(|it| (*it == top).then(|| values.next()).flatten()));
        }
    }
    Ok(found)
}
