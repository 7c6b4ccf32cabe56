//! A bundle: the folder that `export` writes and `serve` loads.
//!
//! ```text
//! <name>/manifest.toml      what this file describes; read first, verified against all others
//! <name>/model.onnx         the step graph, or the classifier's; large weights beside it in model.onnx.data
//! <name>/tokenizer.json     Hugging Face tokenizers format; of language models
//! ```

mod hash;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path as FilePath, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    carry::{Carry, TensorSpec},
    config::ModelConfig,
    images::{ImageConfig, preprocessing::Preprocessing},
    model::Parametric,
};

/// The bundle format that this code reads and writes.
pub const FORMAT: u32 = 1;
/// Name of the manifest within a bundle.
pub const MANIFEST_FILE: &str = "manifest.toml";
/// Name of the step graph within a bundle.
pub const MODEL_FILE: &str = "model.onnx";
/// Name of the tokenizer within a bundle.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Longest name of a model.
pub const NAME_BYTES_MAX: usize = 64;
/// A manifest is a few kilobytes; what is larger is not one.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What a bundle says of itself, `M` being what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest<M: Bundled = ModelConfig> {
    /// Version of this structure: [`FORMAT`].
    pub format: u32,
    /// What clients call the model.
    pub name: String,
    /// How matrices are stored.
    pub precision: Precision,
    /// Operators of the domain `aerie` that the graph uses, with the version of each.
    pub ops: BTreeMap<String, u32>,
    /// BLAKE3 of every other file of the bundle, in hexadecimal.
    pub files: BTreeMap<String, String>,
    pub model: M,
    pub provenance: Provenance,
    /// What has to be known to talk to the model.
    pub interface: M::Interface,
}

/// What the step function maps to what.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Tokens to the logits of the next one.
    LanguageModel,
    /// Pixels to the logits of classes.
    ImageClassifier,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LanguageModel => "language-model",
            Self::ImageClassifier => "image-classifier",
        })
    }
}

/// How matrices are stored. Norms, biases, the convolution and the recurrence are f32 always.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    /// Computed with in f32.
    F16,
    /// Computed with in f32.
    Bf16,
    /// Bytes, with one scale for each output; inputs of products are rounded to bytes.
    Q8,
    /// Four bits, with one scale for each 32 inputs; inputs of products are rounded to bytes.
    Q4,
}

impl Precision {
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8, Self::Q4];

    /// What command lines and manifests call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }
}

/// Where a bundle comes from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Program and version that wrote the bundle.
    pub tool: String,
    /// What the weights were trained on, in words.
    pub data: String,
    /// Optimiser steps behind the weights: 0 if they are random, none if nobody here knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Tokens seen in training; none if nobody here knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Images seen in training; none if nobody here knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// Text by which the scales of weights were chosen, in words; none if by the weights alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
}

/// What a classifier takes and says.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictures {
    /// What is done to a picture before the graph.
    pub input: Preprocessing,
    /// Names of the classes.
    pub labels: Vec<String>,
}

/// Why a bundle is refused.
#[derive(Debug, Error)]
pub enum BundleError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {found_bytes} bytes, but a manifest has at most {max_bytes}", path.display())]
    TooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("manifest field `kind` is {found}; {expected} is expected")]
    Kind { found: Kind, expected: Kind },
    #[error("manifest field `{field}` is missing; a bundle of kind {kind} has it")]
    Missing { field: &'static str, kind: Kind },
    #[error("manifest field `{field}` is none of a bundle of kind {kind}")]
    Surplus { field: &'static str, kind: Kind },
    #[error("manifest field `labels` has {found} names, but the model has {expected} classes")]
    Labels { found: usize, expected: u32 },
    #[error("manifest field `format` is {found}; this build reads {FORMAT}")]
    Format { found: u32 },
    #[error(
        "manifest field `name` is {found:?}; 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.' \
         are expected"
    )]
    Name { found: String },
    #[error("manifest field `carry` differs from what `model` implies at {path}")]
    Carry { path: String },
    #[error("manifest field `files` names {file:?}; only plain file names are allowed")]
    FileName { file: String },
    #[error("manifest field `files` lacks {file}")]
    MissingFile { file: &'static str },
    #[error("manifest field `files`: {file} has BLAKE3 {found}, but {expected} is expected")]
    Hash { file: String, found: String, expected: String },
    #[error(
        "manifest field `ops`: {op} has version {found} in the bundle, {expected} in this build"
    )]
    OpVersion { op: String, found: u32, expected: u32 },
    #[error("manifest field `ops`: this build has no operator {op}")]
    UnknownOp { op: String },
}

/// What a bundle can hold.
pub trait Bundled: Parametric + Serialize + DeserializeOwned {
    const KIND: Kind;
    /// Files that the bundle has, besides the manifest.
    const FILES: &'static [&'static str];
    /// What has to be known to talk to it, besides itself.
    type Interface: Clone + std::fmt::Debug + PartialEq;

    /// Takes what is its own of a manifest.
    ///
    /// # Errors
    /// [`BundleError`], naming the field.
    fn interface(&self, parts: Parts) -> Result<Self::Interface, BundleError>;

    /// Gives what is its own to a manifest.
    fn parts(&self, interface: &Self::Interface) -> Parts;
}

/// Fields of a manifest that only some kinds have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// Names of the classes.
    pub labels: Option<Vec<String>>,
    pub input: Option<Preprocessing>,
    /// Fields of a session record in their order; repeats what `model` implies, so that a reader
    /// that derives another layout notices.
    pub carry: Option<Vec<TensorSpec>>,
}

impl Bundled for ModelConfig {
    const KIND: Kind = Kind::LanguageModel;
    const FILES: &'static [&'static str] = &[MODEL_FILE, TOKENIZER_FILE];
    type Interface = ();

    fn interface(&self, parts: Parts) -> Result<(), BundleError> {
        let kind = Self::KIND;
        if parts.labels.is_some() {
            return Err(BundleError::Surplus { field: "labels", kind });
        }
        if parts.input.is_some() {
            return Err(BundleError::Surplus { field: "input", kind });
        }
        let layout = Carry::layout(self);
        let carry = parts.carry.ok_or(BundleError::Missing { field: "carry", kind })?;
        let mut expected = layout.fields();
        let mut found = carry.iter();
        loop {
            match (expected.next(), found.next()) {
                (None, None) => return Ok(()),
                (a, b) if a == b => {}
                (a, b) => {
                    let path = a.or(b).map(|spec| spec.path.clone()).unwrap_or_default();
                    return Err(BundleError::Carry { path });
                }
            }
        }
    }

    fn parts(&self, (): &()) -> Parts {
        let carry = Carry::layout(self).fields().cloned().collect();
        Parts { carry: Some(carry), ..Parts::default() }
    }
}

impl Bundled for ImageConfig {
    const KIND: Kind = Kind::ImageClassifier;
    const FILES: &'static [&'static str] = &[MODEL_FILE];
    type Interface = Pictures;

    fn interface(&self, parts: Parts) -> Result<Pictures, BundleError> {
        let kind = Self::KIND;
        if parts.carry.is_some() {
            return Err(BundleError::Surplus { field: "carry", kind });
        }
        let labels = parts.labels.ok_or(BundleError::Missing { field: "labels", kind })?;
        let input = parts.input.ok_or(BundleError::Missing { field: "input", kind })?;
        if labels.len() != self.classes as usize {
            return Err(BundleError::Labels { found: labels.len(), expected: self.classes });
        }
        Ok(Pictures { input, labels })
    }

    fn parts(&self, Pictures { input, labels }: &Pictures) -> Parts {
        Parts { labels: Some(labels.clone()), input: Some(input.clone()), carry: None }
    }
}

/// A manifest of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyManifest {
    Language(Manifest),
    Images(Manifest<ImageConfig>),
}

impl AnyManifest {
    /// [`Manifest::read`], whatever the bundle holds.
    ///
    /// # Errors
    /// See [`BundleError`]; each names the field that does not hold.
    pub fn read(
        dir: &FilePath,
        op_version: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, BundleError> {
        let text = read_text(dir)?;
        Ok(match Fields::parse(&text).map_err(|it| it.at(dir))?.kind {
            Kind::LanguageModel => Self::Language(Manifest::read(dir, op_version)?),
            Kind::ImageClassifier => Self::Images(Manifest::read(dir, op_version)?),
        })
    }

    /// [`Manifest::open`], whatever the bundle holds.
    ///
    /// # Errors
    /// See [`BundleError`]; each names the field that does not hold.
    pub fn open(
        dir: &FilePath,
        op_version: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, BundleError> {
        let manifest = Self::read(dir, op_version)?;
        verify_files(dir, manifest.files())?;
        Ok(manifest)
    }

    /// See [`Manifest::files`].
    pub fn files(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Language(it) => &it.files,
            Self::Images(it) => &it.files,
        }
    }
}

/// A manifest as it is read: of any kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: u32,
    name: String,
    kind: Kind,
    precision: Precision,
    #[serde(default)]
    labels: Option<Vec<String>>,
    ops: BTreeMap<String, u32>,
    files: BTreeMap<String, String>,
    model: toml::Table,
    provenance: Provenance,
    #[serde(default)]
    input: Option<Preprocessing>,
    #[serde(default)]
    carry: Option<Vec<TensorSpec>>,
}

impl Fields {
    fn parse(text: &str) -> Result<Self, BundleError> {
        toml::from_str(text).map_err(parse_error)
    }
}

/// A manifest as it is written. The order of fields is part of the format: a fingerprint is taken of it.
#[derive(Debug, Serialize)]
struct Written<'a, M> {
    format: u32,
    name: &'a str,
    kind: Kind,
    precision: Precision,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<String>>,
    ops: &'a BTreeMap<String, u32>,
    files: &'a BTreeMap<String, String>,
    model: &'a M,
    provenance: &'a Provenance,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Preprocessing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    carry: Option<Vec<TensorSpec>>,
}

fn parse_error(source: toml::de::Error) -> BundleError {
    BundleError::Parse { path: MANIFEST_FILE.into(), source: Box::new(source) }
}

impl BundleError {
    /// The same, of the manifest in `dir`.
    fn at(self, dir: &FilePath) -> Self {
        match self {
            Self::Parse { source, .. } => Self::Parse { path: dir.join(MANIFEST_FILE), source },
            other => other,
        }
    }
}

/// The manifest's text.
fn read_text(dir: &FilePath) -> Result<String, BundleError> {
    let path = dir.join(MANIFEST_FILE);
    let io_error = |source| BundleError::Io { path: path.clone(), source };
    let found_bytes = fs::metadata(&path).map_err(io_error)?.len();
    if MANIFEST_BYTES_MAX < found_bytes {
        let max_bytes = MANIFEST_BYTES_MAX;
        return Err(BundleError::TooLarge { path, found_bytes, max_bytes });
    }
    fs::read_to_string(&path).map_err(io_error)
}

impl<M: Bundled> Manifest<M> {
    /// Reads the manifest of the bundle in `dir` and verifies every file against it.
    ///
    /// `op_version` tells the version of an operator that the reader has.
    ///
    /// # Errors
    /// See [`BundleError`]; each names the field that does not hold.
    pub fn open(
        dir: &FilePath,
        op_version: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, BundleError> {
        let manifest = Self::read(dir, op_version)?;
        verify_files(dir, &manifest.files)?;
        Ok(manifest)
    }

    /// Reads the manifest of the bundle in `dir`, for a reader who verifies the files with
    /// [`verify_bytes`] before it trusts them.
    ///
    /// # Errors
    /// See [`BundleError`]; each names the field that does not hold.
    pub fn read(
        dir: &FilePath,
        op_version: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, BundleError> {
        let manifest = Self::parse(&read_text(dir)?).map_err(|it| it.at(dir))?;
        for (op, &found) in &manifest.ops {
            match op_version(op) {
                None => return Err(BundleError::UnknownOp { op: op.clone() }),
                Some(expected) if expected != found => {
                    return Err(BundleError::OpVersion { op: op.clone(), found, expected });
                }
                Some(_) => {}
            }
        }
        Ok(manifest)
    }

    /// Parses a manifest; what comes back is consistent in itself.
    ///
    /// # Errors
    /// See [`BundleError`]; files are not looked at.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let it = Fields::parse(text)?;
        if it.format != FORMAT {
            return Err(BundleError::Format { found: it.format });
        }
        if it.kind != M::KIND {
            return Err(BundleError::Kind { found: it.kind, expected: M::KIND });
        }
        if !is_name(&it.name) {
            return Err(BundleError::Name { found: it.name });
        }
        let model = M::deserialize(it.model).map_err(parse_error)?;
        let interface =
            model.interface(Parts { labels: it.labels, input: it.input, carry: it.carry })?;
        if let Some(file) = it.files.keys().find(|file| !is_plain(file)) {
            return Err(BundleError::FileName { file: file.clone() });
        }
        if let Some(&file) = M::FILES.iter().find(|file| !it.files.contains_key(**file)) {
            return Err(BundleError::MissingFile { file });
        }
        let Fields { format, name, precision, ops, files, provenance, .. } = it;
        Ok(Self { format, name, precision, ops, files, model, provenance, interface })
    }

    /// The manifest as TOML, in the one form that [`Manifest::fingerprint`] is taken of.
    pub fn to_toml(&self) -> String {
        let Parts { labels, input, carry } = self.model.parts(&self.interface);
        let written = Written {
            format: self.format,
            name: &self.name,
            kind: M::KIND,
            precision: self.precision,
            labels,
            ops: &self.ops,
            files: &self.files,
            model: &self.model,
            provenance: &self.provenance,
            input,
            carry,
        };
        toml::to_string(&written).expect("every field has a TOML form")
    }

    /// Identifies the model: equal only if weights, graph, tokenizer and layout are.
    pub fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(self.to_toml().as_bytes()).as_bytes()
    }
}

impl Manifest {
    /// The layout of a session record.
    pub fn layout(&self) -> Carry<TensorSpec> {
        Carry::layout(&self.model)
    }
}

fn verify_files(dir: &FilePath, files: &BTreeMap<String, String>) -> Result<(), BundleError> {
    for (file, expected) in files {
        compare(file, hash_file(&dir.join(file))?, expected)?;
    }
    Ok(())
}

/// BLAKE3 of a file, in hexadecimal.
///
/// # Errors
/// [`BundleError::Io`] if it cannot be read.
pub fn hash_file(path: &FilePath) -> Result<String, BundleError> {
    let io_error = |source| BundleError::Io { path: path.to_owned(), source };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path).map_err(io_error)?).map_err(io_error)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Holds the content of `file` to the BLAKE3 that the manifest has of it; taken on all cores.
///
/// # Errors
/// [`BundleError::Hash`] if they differ.
pub fn verify_bytes(file: &str, bytes: &[u8], expected: &str) -> Result<(), BundleError> {
    compare(file, hash::hash(bytes).to_hex().to_string(), expected)
}

fn compare(file: &str, found: String, expected: &str) -> Result<(), BundleError> {
    if found != expected {
        let (file, expected) = (file.to_owned(), expected.to_owned());
        return Err(BundleError::Hash { file, found, expected });
    }
    Ok(())
}

/// Whether a model may be called `name`: it becomes a folder, a label and part of an identifier.
pub fn is_name(name: &str) -> bool {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain)
}

/// Whether `file` names something directly inside the bundle.
fn is_plain(file: &str) -> bool {
    let mut parts = FilePath::new(file).components();
    matches!(parts.next(), Some(std::path::Component::Normal(it)) if it == file)
        && parts.next().is_none()
}
