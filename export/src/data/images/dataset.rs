//! Labelled pictures, whatever form they come in.
//!
//! ```text
//! <file>.parquet                       Hugging Face: columns `img` or `image`, and `label`
//! <folder>/train*.parquet, test*       the same in shards; also within `<folder>/data/`
//! <folder>/data_batch_*.bin            CIFAR-10's own files; also train.bin, test.bin of CIFAR-100
//! <folder>/train/<class>/<name>.jpg    pictures in folders, decoded when they are asked for
//! ```

mod cifar;
mod folder;
mod parquet;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ::parquet::errors::ParquetError;
use aerie_models::images::preprocessing::{
    Extent, Picture, PictureError, PictureLimits, View, decode,
};
use rand::seq::SliceRandom;
use thiserror::Error;

use crate::{chance, progress::bar};

/// Labelled pictures.
#[derive(Debug)]
pub struct Dataset {
    pictures: Arc<Pictures>,
    /// Which of the pictures these are, if not all of them.
    chosen: Option<Vec<u32>>,
    /// Class of each picture.
    labels: Vec<u32>,
    /// Names of the classes; their numbers where the data does not say.
    classes: Vec<String>,
}

/// The part of a data set that is taken of a folder with both. Of a folder with neither all is taken, and
/// a file is what it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Split {
    Train,
    Test,
}

impl Split {
    /// How names of its files begin, or that of its folder, in the order in which they are looked for.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train", "data_batch"],
            Self::Test => &["test", "validation", "valid", "val"],
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Train => Self::Test,
            Self::Test => Self::Train,
        }
    }
}

/// Why a data set is refused.
#[derive(Debug, Error)]
pub enum DatasetError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} holds no data set: a .parquet or .bin file is expected, or a folder with {expected}",
        path.display()
    )]
    Unknown { path: PathBuf, expected: &'static str },
    #[error("{}: {source}", path.display())]
    Parquet { path: PathBuf, source: ParquetError },
    #[error("{}: column {expected} is expected, but there are {found}", path.display())]
    Column { path: PathBuf, expected: &'static str, found: String },
    #[error(
        "{}, row {row}, column {column}: {expected} is expected, but found {found}",
        path.display()
    )]
    Cell { path: PathBuf, row: usize, column: String, expected: String, found: String },
    #[error("{}: {source}", path.display())]
    Picture { path: PathBuf, source: PictureError },
    #[error(
        "{}: {found_bytes} bytes are no multiple of {record_bytes}, which a picture and its labels \
         take",
        path.display()
    )]
    Records { path: PathBuf, found_bytes: usize, record_bytes: usize },
    #[error("{}: {found_bytes} bytes; at most {bytes_max} are read", path.display())]
    TooLarge { path: PathBuf, found_bytes: u64, bytes_max: u64 },
    #[error("{}: there is no picture", path.display())]
    Empty { path: PathBuf },
    #[error("holdout is {share} of {pictures} pictures; some must be held out, and some be left")]
    Holdout { share: f64, pictures: usize },
    #[error(
        "{} has the classes {found}, but the other part of the data has {expected}",
        path.display()
    )]
    Classes { path: PathBuf, found: String, expected: String },
}

/// Most pictures of a data set: an index fits in 32 bits.
const PICTURES_MAX: usize = u32::MAX as usize;
/// Most classes.
pub const CLASSES_MAX: u32 = 1 << 20;
/// Largest decoded data set that is held in memory.
const PACKED_BYTES_MAX: usize = 4 << 30;
/// Largest file that is read into memory.
const FILE_BYTES_MAX: u64 = 16 << 30;

#[derive(Debug)]
enum Pictures {
    /// Pictures of one size, one after another.
    Packed {
        extent: Extent,
        rgb: Vec<u8>,
    },
    /// Files of pictures one after another in memory; `ends` says where each ends.
    Encoded {
        bytes: Vec<u8>,
        ends: Vec<usize>,
        places: Places,
    },
    Files(Vec<PathBuf>),
}

/// Files, and how many pictures there are up to the end of each.
#[derive(Debug, Default)]
struct Places {
    column: String,
    files: Vec<(PathBuf, usize)>,
}

impl Dataset {
    /// Opens the data set at `path`; its form is found out from the names of its files.
    ///
    /// # Errors
    /// [`DatasetError`], naming file, row and column.
    pub fn open(path: &Path, split: Split) -> Result<Self, DatasetError> {
        let found = find(path, split)?;
        let dataset = match &found {
            Found::Parquet(files) => parquet::read(files)?,
            Found::Cifar(files) => cifar::read(files)?,
            Found::Folder(folder) => folder::read(folder)?,
        };
        if dataset.is_empty() || PICTURES_MAX < dataset.len() {
            return Err(DatasetError::Empty { path: path.to_owned() });
        }
        Ok(dataset)
    }

    /// Opens what the data set at `path` has for tests of what tells `classes` apart, which it has to have.
    ///
    /// # Errors
    /// [`DatasetError`], naming file, row and column.
    pub fn open_test(path: &Path, classes: &[String]) -> Result<Self, DatasetError> {
        let mut test = Self::open(path, Split::Test)?;
        // Numbers stand for names that the data does not tell; a part may lack the last ones.
        if is_numbered(&test.classes) && test.classes.len() <= classes.len() {
            test.classes = classes.to_vec();
        }
        if classes != test.classes {
            let [expected, found] = [classes, &test.classes].map(|it| it.join(", "));
            return Err(DatasetError::Classes { path: path.to_owned(), found, expected });
        }
        Ok(test)
    }

    /// A data set of pictures in memory.
    ///
    /// # Panics
    /// If `rgb` is not `[N, H, W, 3]` for `N` labels, or a label has no class.
    pub fn packed(extent: Extent, rgb: Vec<u8>, labels: Vec<u32>, classes: Vec<String>) -> Self {
        assert_eq!(rgb.len(), labels.len() * extent.bytes(), "rgb is [N, H, W, 3]");
        assert!(labels.iter().all(|&it| (it as usize) < classes.len()), "labels have classes");
        Self::whole(Pictures::Packed { extent, rgb }, labels, classes)
    }

    fn whole(pictures: Pictures, labels: Vec<u32>, classes: Vec<String>) -> Self {
        Self { pictures: Arc::new(pictures), chosen: None, labels, classes }
    }

    /// Parts the pictures by chance, always in the same way: all but the share `holdout`, and this share.
    ///
    /// # Errors
    /// If either would be empty.
    pub fn hold_out(&self, holdout: f64) -> Result<(Self, Self), DatasetError> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let held_out = (self.len() as f64 * holdout) as usize;
        if held_out == 0 || self.len() <= held_out {
            return Err(DatasetError::Holdout { share: holdout, pictures: self.len() });
        }
        let order = self.drawn();
        let (kept, held_out) = order.split_at(self.len() - held_out);
        Ok((self.choose(kept), self.choose(held_out)))
    }

    /// At most `count` of the pictures, by chance, always the same ones: fewer are among more.
    pub fn at_most(self, count: usize) -> Self {
        if self.len() <= count { self } else { self.choose(&self.drawn()[..count]) }
    }

    /// The pictures in an order without a pattern, always the same one.
    fn drawn(&self) -> Vec<u32> {
        let count = u32::try_from(self.len()).expect("pictures have been counted");
        let mut order: Vec<u32> = (0..count).collect();
        order.shuffle(&mut chance::source(0, "parts of a data set", 0));
        order
    }

    fn choose(&self, order: &[u32]) -> Self {
        let chosen = |it: &u32| self.chosen.as_ref().map_or(*it, |all| all[*it as usize]);
        Self {
            pictures: Arc::clone(&self.pictures),
            chosen: Some(order.iter().map(chosen).collect()),
            labels: order.iter().map(|&it| self.labels[it as usize]).collect(),
            classes: self.classes.clone(),
        }
    }

    /// Pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Names of the classes, in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class of each picture.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// What all pictures measure, if that is known.
    pub fn extent(&self) -> Option<Extent> {
        match *self.pictures {
            Pictures::Packed { extent, .. } => Some(extent),
            Pictures::Encoded { .. } | Pictures::Files(_) => None,
        }
    }

    /// Picture `idx`, decoded now unless all of them are in memory.
    ///
    /// # Errors
    /// [`DatasetError`] if it cannot be read or decoded.
    ///
    /// # Panics
    /// If there is no such picture.
    pub fn picture(&self, idx: usize) -> Result<Picture, DatasetError> {
        let idx = self.chosen.as_ref().map_or(idx, |it| it[idx] as usize);
        match &*self.pictures {
            Pictures::Packed { extent, rgb } => {
                let bytes = extent.bytes();
                Ok(View::new(*extent, &rgb[idx * bytes..][..bytes]).to_picture())
            }
            Pictures::Encoded { bytes, ends, places } => {
                let start = idx.checked_sub(1).map_or(0, |it| ends[it]);
                decode(&bytes[start..ends[idx]], &PictureLimits::default())
                    .map_err(|error| places.cell(idx, &error))
            }
            Pictures::Files(paths) => {
                let path = &paths[idx];
                let limits = PictureLimits::default();
                decode(&read_file(path, limits.bytes_max as u64)?, &limits)
                    .map_err(|source| DatasetError::Picture { path: path.clone(), source })
            }
        }
    }

    /// The data set with its pictures decoded, if all are of one size and fit in memory.
    fn pack(self) -> Result<Self, DatasetError> {
        let bar = bar("decode {bar:30} {pos}/{len} pictures, {eta} left", self.len() as u64);
        let mut packed: Option<(Extent, Vec<u8>)> = None;
        for idx in 0..self.len() {
            let picture = self.picture(idx)?;
            let (extent, rgb) = packed.get_or_insert_with(|| (picture.extent(), Vec::new()));
            if *extent != picture.extent() || PACKED_BYTES_MAX / extent.bytes() < self.len() {
                return Ok(self);
            }
            rgb.extend(picture.rgb());
            bar.inc(1);
        }
        bar.finish_and_clear();
        let Some((extent, rgb)) = packed else { return Ok(self) };
        Ok(Self { pictures: Arc::new(Pictures::Packed { extent, rgb }), ..self })
    }
}

impl Places {
    /// Says in which file and row a picture that cannot be decoded lies.
    fn cell(&self, idx: usize, error: &PictureError) -> DatasetError {
        let file = self.files.partition_point(|(_, end)| *end <= idx);
        let start = file.checked_sub(1).map_or(0, |it| self.files[it].1);
        DatasetError::Cell {
            path: self.files[file].0.clone(),
            row: idx - start,
            column: self.column.clone(),
            expected: "a JPEG or PNG".to_owned(),
            found: error.to_string(),
        }
    }
}

/// Files of a data set, by their form.
#[derive(Debug)]
enum Found {
    Parquet(Vec<PathBuf>),
    Cifar(Vec<PathBuf>),
    Folder(PathBuf),
}

fn find(path: &Path, split: Split) -> Result<Found, DatasetError> {
    let io_error = |source| DatasetError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io_error)?.is_file() {
        let file = vec![path.to_owned()];
        return match extension(path).as_str() {
            "parquet" => Ok(Found::Parquet(file)),
            "bin" => Ok(Found::Cifar(file)),
            _ => Err(unknown(path, split)),
        };
    }
    let entries = sorted(path)?;
    let inner = sorted(&path.join("data")).unwrap_or_default();
    let files = |prefix: &str| {
        let of = |entries: &[PathBuf], wanted: &str| -> Vec<PathBuf> {
            let fits = |it: &&PathBuf| extension(it) == wanted && file_name(it).starts_with(prefix);
            entries.iter().filter(fits).cloned().collect()
        };
        let found = |entries: &[PathBuf]| {
            let (parquet, bin) = (of(entries, "parquet"), of(entries, "bin"));
            let parquet = (!parquet.is_empty()).then_some(Found::Parquet(parquet));
            parquet.or_else(|| (!bin.is_empty()).then_some(Found::Cifar(bin)))
        };
        found(&entries).or_else(|| found(&inner))
    };
    let folders: Vec<&PathBuf> = entries.iter().filter(|it| it.is_dir()).collect();
    // A class may have the name of a part, but not all of them.
    let is_part = |it: &&PathBuf| {
        let is = |split: Split| split.names().contains(&&*file_name(it));
        is(split) || is(split.other())
    };
    let are_parts = folders.iter().copied().all(|it| is_part(&it));
    for name in split.names() {
        if let Some(found) = files(name) {
            return Ok(found);
        }
        if are_parts && folders.iter().any(|it| file_name(it) == *name) {
            return Ok(Found::Folder(path.join(name)));
        }
    }
    let is_other_part = split.other().names().iter().any(|it| files(it).is_some());
    let found = if is_other_part { None } else { files("") };
    match found {
        None if !are_parts && !is_other_part => Ok(Found::Folder(path.to_owned())),
        found => found.ok_or_else(|| unknown(path, split)),
    }
}

fn unknown(path: &Path, split: Split) -> DatasetError {
    let expected = match split {
        Split::Train => {
            "train*.parquet, data_batch_*.bin, train.bin, a folder `train`, or one for each class"
        }
        Split::Test => {
            "test*.parquet, test*.bin, a folder `test`, `validation` or `val`, or one for each class"
        }
    };
    DatasetError::Unknown { path: path.to_owned(), expected }
}

/// What lies in a folder, in the order of names; hidden files are left out.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let io_error = |source| DatasetError::Io { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The whole of a file that is not larger than `bytes_max`.
fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, DatasetError> {
    let io_error = |source| DatasetError::Io { path: path.to_owned(), source };
    let found_bytes = fs::metadata(path).map_err(io_error)?.len();
    if bytes_max < found_bytes {
        return Err(DatasetError::TooLarge { path: path.to_owned(), found_bytes, bytes_max });
    }
    fs::read(path).map_err(io_error)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Names for classes that have none.
fn numbered(count: u32) -> Vec<String> {
    (0..count).map(|it| it.to_string()).collect()
}

fn is_numbered(classes: &[String]) -> bool {
    classes.iter().enumerate().all(|(idx, it)| *it == idx.to_string())
}
