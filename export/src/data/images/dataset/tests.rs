//! Small data sets of every form, made here, and what is said of those that are spoilt.

use std::{env, fs, sync::Arc};

use ::parquet::{
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{metadata::KeyValue, properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use aerie_fuzz::{Format, Fuzz};
use tempfile::TempDir;

use super::*;

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (UTF8); }
    optional int64 label;
}";
const NAMES: &str = r#"{"info": {"features": {"label": {"names": ["cat", "dog", "owl"]}}}}"#;

/// A row: what lies in `bytes`, `path` and `label`.
type Row = (Option<Vec<u8>>, &'static str, Option<i64>);

#[test]
fn rows_of_parquet_become_pictures_and_labels() {
    let rows = [(Some(png(2)), "", Some(2)), (Some(png(7)), "", Some(0))];
    let dataset = open("a.parquet", &parquet_of(&rows, Some(NAMES))).unwrap();
    assert_eq!(dataset.labels(), [2, 0]);
    assert_eq!(dataset.classes(), ["cat", "dog", "owl"]);
    assert_eq!(dataset.extent(), Some(Extent { height: 1, width: 2 }));
    assert_eq!(dataset.picture(1).unwrap().rgb(), [7; 6]);
}

#[test]
fn classes_are_called_like_the_folders_of_their_pictures() {
    let rows =
        [(Some(png(2)), "test/owl/1.png", Some(1)), (Some(png(7)), "test/cat/2.png", Some(0))];
    let dataset = open("a.parquet", &parquet_of(&rows, None)).unwrap();
    assert_eq!(dataset.classes(), ["cat", "owl"]);
    let alike = [(Some(png(2)), "x/1.png", Some(1)), (Some(png(7)), "x/2.png", Some(0))];
    assert_eq!(open("a.parquet", &parquet_of(&alike, None)).unwrap().classes(), ["0", "1"]);
}

#[test]
fn pictures_of_several_sizes_stay_encoded() {
    let large = encoded(3, 1, &[5; 9]);
    let rows = [(Some(png(2)), "", Some(0)), (Some(large), "", Some(0))];
    let dataset = open("a.parquet", &parquet_of(&rows, None)).unwrap();
    assert_eq!(dataset.extent(), None);
    assert_eq!(dataset.picture(1).unwrap().extent(), Extent { height: 1, width: 3 });
}

#[test]
fn cell_that_is_wrong_is_named() {
    let good = (Some(png(2)), "", Some(0));
    let check_with = |names, row: Row, message: &str| {
        let error = open("a.parquet", &parquet_of(&[good.clone(), row], names)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("a.parquet, row 1, column ") && error.contains(message), "{error}");
    };
    let check = |row, message| check_with(None, row, message);
    check((None, "", Some(0)), "image.bytes: a JPEG or PNG is expected, but found null");
    check((Some(b"GIF8".to_vec()), "", Some(0)), "the bytes are neither JPEG nor PNG");
    check((Some(png(1)), "", Some(-1)), "label: a number below 1048576 is expected, but found -1");
    check((Some(png(1)), "", None), "label: a number below 1048576 is expected, but found null");
    check_with(
        Some(NAMES),
        (Some(png(1)), "", Some(3)),
        "a number below 3 is expected, but found 3",
    );
}

#[test]
fn column_that_is_missing_is_named() {
    let bytes = parquet_of(&[(Some(png(2)), "", Some(0))], None);
    // Names have their length before them, so they are replaced by others as long.
    let renamed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
        open("a.parquet", &bytes).unwrap_err().to_string()
    };
    let error = renamed(b"label", b"lapel");
    assert!(error.ends_with(
        "column label, labels or fine_label is expected, but there are image.bytes, image.path, lapel"
    ));
    assert!(renamed(b"image", b"imago").contains("column img.bytes or image.bytes is expected"));
}

#[test]
fn cifar_files_are_read_plane_by_plane() {
    let dir = TempDir::new().unwrap();
    let record = |label: u8| -> Vec<u8> {
        let planes = [10, 20, 30].map(|plane: u8| (0..1024).map(move |it| plane + (it % 7) as u8));
        [label].into_iter().chain(planes.into_iter().flatten()).collect()
    };
    fs::write(dir.path().join("data_batch_1.bin"), record(3)).unwrap();
    fs::write(dir.path().join("data_batch_2.bin"), [record(9), record(0)].concat()).unwrap();
    fs::write(dir.path().join("test_batch.bin"), record(1)).unwrap();
    let names: Vec<String> = (0..10).map(|it| format!("class {it}\n")).collect();
    fs::write(dir.path().join("batches.meta.txt"), names.concat() + "\n").unwrap();
    let train = Dataset::open(dir.path(), Split::Train).unwrap();
    let test = Dataset::open_test(dir.path(), train.classes()).unwrap();
    assert_eq!((train.labels(), test.labels()), (&[3, 9, 0][..], &[1][..]));
    assert_eq!(train.classes()[9], "class 9");
    assert_eq!(train.picture(2).unwrap().rgb()[3..6], [11, 21, 31]);

    let path = dir.path().join("test_batch.bin");
    fs::write(&path, record(10)).unwrap();
    let error = Dataset::open(&path, Split::Train).unwrap_err().to_string();
    assert!(error.ends_with("row 0, column label: a number below 10 is expected, but found 10"));
    fs::write(&path, &record(1)[1..]).unwrap();
    let error = Dataset::open(&path, Split::Train).unwrap_err().to_string();
    assert!(error.contains("3072 bytes are no multiple of 3073"), "{error}");
}

#[test]
fn cifar_100_has_its_fine_labels() {
    let record = [&[4, 99][..], &[0; 3072]].concat();
    let dataset = open("train.bin", &record).unwrap();
    assert_eq!((dataset.labels(), dataset.classes().len()), (&[99][..], 100));
}

#[test]
fn folders_are_classes() {
    let dir = TempDir::new().unwrap();
    for (name, value) in [("train/owl/2.png", 2), ("train/cat/1.PNG", 1), ("val/cat/3.png", 3)] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(value)).unwrap();
    }
    fs::create_dir_all(dir.path().join("val/owl")).unwrap();
    fs::write(dir.path().join("train/cat/notes.txt"), "none").unwrap();
    let train = Dataset::open(dir.path(), Split::Train).unwrap();
    let test = Dataset::open_test(dir.path(), train.classes()).unwrap();
    assert_eq!((train.labels(), test.labels()), (&[0, 1][..], &[0][..]));
    assert_eq!(train.classes(), ["cat", "owl"]);
    assert_eq!(train.picture(1).unwrap().rgb(), [2; 6]);

    fs::write(dir.path().join("train/owl/2.png"), "text").unwrap();
    let error = train.picture(1).unwrap_err().to_string();
    assert!(error.contains("owl/2.png: the bytes are neither"), "{error}");
    fs::remove_dir_all(dir.path().join("val/owl")).unwrap();
    let error = Dataset::open_test(dir.path(), train.classes()).unwrap_err().to_string();
    assert!(error.contains("has the classes cat, but the other part"), "{error}");
}

/// Whoever gives a folder with both parts for training must not train on what is tested with.
#[test]
fn the_other_part_is_never_taken() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, label: u8| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [&[label][..], &[7; 3072]].concat()).unwrap();
    };
    let labels = |split| Dataset::open(dir.path(), split).map(|it| it.labels().to_vec());
    write("test_batch.bin", 1);
    assert!(labels(Split::Train).is_err(), "there is only a test part");
    write("data_batch_1.bin", 2);
    assert_eq!(labels(Split::Train).unwrap(), [2]);
    assert_eq!(labels(Split::Test).unwrap(), [1]);

    // Neither part: all of it is taken. A class may have the name of a part.
    let dir = TempDir::new().unwrap();
    for name in ["train/1.png", "owl/2.png"] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(1)).unwrap();
    }
    for split in [Split::Train, Split::Test] {
        let dataset = Dataset::open(dir.path(), split).unwrap();
        assert_eq!(dataset.classes(), ["owl", "train"]);
    }
}

#[test]
fn what_is_no_data_set_is_refused() {
    let dir = TempDir::new().unwrap();
    let error = |split| Dataset::open(dir.path(), split).unwrap_err().to_string();
    assert!(error(Split::Train).contains("train*.parquet, data_batch_*.bin, train.bin, a folder"));
    fs::create_dir(dir.path().join("owl")).unwrap();
    assert!(error(Split::Train).contains("there is no picture"));
    assert!(open("a.zip", b"PK").unwrap_err().to_string().contains("holds no data set"));
}

/// Needs the folder of CIFAR-10 in Parquet, see [`cifar_10`].
#[test]
fn cifar_10_has_a_tenth_of_each_class() {
    let Some(dataset) = cifar_10(Split::Test) else { return };
    assert_eq!(dataset.extent(), Some(Extent { height: 32, width: 32 }));
    let names = "airplane automobile bird cat deer dog frog horse ship truck";
    assert_eq!(dataset.classes().join(" "), names);
    for class in 0..10 {
        assert_eq!(dataset.labels().iter().filter(|it| **it == class).count(), 1000);
    }
}

/// The library asserted that offsets are not negative and that dictionaries come first, which in
/// damaged files they were not: the program ended where a data set should have been refused.
#[test]
fn damaged_columns_are_refused() {
    let mut refused = 0;
    let bytes = parquet_of(&[(Some(png(2)), "", Some(0))], None);
    let offsets = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"label"));
    // What follows a column's name in the footer: its codec, sizes and offsets.
    for at in offsets.flat_map(|at| at + 5..at + 25).filter(|at| *at < bytes.len() - 8) {
        for value in [1, 3, 0x7f, 0xff] {
            let mut spoilt = bytes.clone();
            spoilt[at] = value;
            refused += u32::from(open("a.parquet", &spoilt).is_err());
        }
    }
    assert!(0 < refused);
}

#[test]
fn fuzzed_parquet_is_read_or_refused() {
    let rows = [(Some(png(2)), "t/owl/1", Some(1)), (Some(png(7)), "t/cat/2", Some(0))];
    let seeds = vec![parquet_of(&rows, Some(NAMES)), parquet_of(&rows, None)];
    let words: &[&[u8]] = &[b"PAR1", b"image", b"bytes", b"label", b"huggingface"];
    check_fuzzed("parquet", "a.parquet", seeds, words);
}

#[test]
fn fuzzed_cifar_is_read_or_refused() {
    check_fuzzed("cifar", "a.bin", vec![vec![1; 2 * 3073], vec![9; 3073]], &[]);
}

#[track_caller]
fn check_fuzzed(name: &'static str, file: &str, seeds: Vec<Vec<u8>>, words: &[&[u8]]) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(file);
    Fuzz { name, format: Format::Binary, seeds, words }.run(|bytes| {
        fs::write(&path, bytes).unwrap();
        let Ok(dataset) = Dataset::open(&path, Split::Train) else { return false };
        assert!(dataset.labels().iter().all(|it| (*it as usize) < dataset.classes().len()));
        for idx in 0..dataset.len() {
            let _ = dataset.picture(idx);
        }
        true
    });
}

/// The folder that `AERIE_CIFAR10` names; without it a test says that it is skipped.
pub(crate) fn cifar_10(split: Split) -> Option<Arc<Dataset>> {
    let Some(folder) = env::var_os("AERIE_CIFAR10") else {
        eprintln!(
            "skipped: AERIE_CIFAR10 does not name a folder of train.parquet and test.parquet"
        );
        return None;
    };
    Some(Arc::new(Dataset::open(Path::new(&folder), split).unwrap()))
}

fn open(name: &str, bytes: &[u8]) -> Result<Dataset, DatasetError> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    Dataset::open(&path, Split::Train)
}

fn parquet_of(rows: &[Row], names: Option<&str>) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let names = names.map(|it| vec![KeyValue::new("huggingface".to_owned(), it.to_owned())]);
    let properties = WriterProperties::builder().set_key_value_metadata(names).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let level = |is_there: bool, top: i16| if is_there { top } else { 1.min(top - 1) };
    let pictures: Vec<_> = rows.iter().filter_map(|it| it.0.clone()).map(ByteArray::from).collect();
    let levels: Vec<i16> = rows.iter().map(|it| level(it.0.is_some(), 2)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&pictures, Some(&levels), None).unwrap();
    column.close().unwrap();
    let paths: Vec<_> = rows.iter().map(|it| ByteArray::from(it.1)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    let levels = vec![2; rows.len()];
    column.typed::<ByteArrayType>().write_batch(&paths, Some(&levels), None).unwrap();
    column.close().unwrap();
    let labels: Vec<i64> = rows.iter().filter_map(|it| it.2).collect();
    let levels: Vec<i16> = rows.iter().map(|it| level(it.2.is_some(), 1)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&labels, Some(&levels), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

/// A picture of one row of two pixels, all of one value.
fn png(value: u8) -> Vec<u8> {
    encoded(2, 1, &[value; 6])
}

fn encoded(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(::png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(rgb).unwrap();
    writer.finish().unwrap();
    bytes
}

/// Goal: parts of a data set are apart, always the same, and a smaller one lies within a larger one.
#[test]
fn parts_are_drawn_always_alike() {
    let extent = Extent { height: 1, width: 1 };
    let rgb = (0..100).flat_map(|it| [it, 0, 0]).collect();
    let labels = (0..100).collect();
    let classes = (0..100).map(|it: u32| it.to_string()).collect();
    let all = Dataset::packed(extent, rgb, labels, classes);
    let shown = |it: &Dataset| -> Vec<u32> {
        let red = |idx| u32::from(it.picture(idx).unwrap().rgb()[0]);
        (0..it.len()).map(red).collect()
    };
    let (kept, held_out) = all.hold_out(0.1).unwrap();
    assert_eq!((kept.len(), held_out.len()), (90, 10));
    let mut both = [shown(&kept), shown(&held_out)].concat();
    both.sort_unstable();
    assert_eq!(both, (0..100).collect::<Vec<_>>());
    for it in [&kept, &held_out] {
        assert_eq!(shown(it), it.labels(), "labels go with their pictures");
        assert_eq!(it.classes().len(), 100);
    }
    let [few, more] = [5, 20].map(|it| shown(&all.hold_out(0.1).unwrap().0.at_most(it)));
    assert_eq!((few.len(), more.len()), (5, 20));
    assert_eq!(few, more[..5]);
    assert!(more.iter().all(|it| kept.labels().contains(it)));
    for share in [0.0, 0.001, 1.0, 2.0, -1.0, f64::NAN] {
        let error = all.hold_out(share).unwrap_err().to_string();
        assert!(error.starts_with("holdout is "), "{error}");
    }
}
