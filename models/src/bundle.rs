//! A bundle: the folder that `export` writes and `serve` loads.
//!
//! ```text
//! <name>/manifest.toml      what this file describes; read first, verified against all others
//! <name>/model.onnx         the step graph; large weights beside it in model.onnx.data
//! <name>/tokenizer.json     Hugging Face tokenizers format
//! ```

mod hash;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path as FilePath, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    carry::{Carry, TensorSpec},
    config::ModelConfig,
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

/// What a bundle says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this structure: [`FORMAT`].
    pub format: u32,
    /// What clients call the model.
    pub name: String,
    pub kind: Kind,
    /// How matrices are stored.
    pub precision: Precision,
    /// Operators of the domain `aerie` that the graph uses, with the version of each.
    pub ops: BTreeMap<String, u32>,
    /// BLAKE3 of every other file of the bundle, in hexadecimal.
    pub files: BTreeMap<String, String>,
    pub model: ModelConfig,
    pub provenance: Provenance,
    /// Fields of a session record in their order; repeats what `model` implies, so that a reader
    /// that derives another layout notices.
    pub carry: Vec<TensorSpec>,
}

/// What the step function maps to what.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Tokens to the logits of the next one.
    LanguageModel,
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
    /// Text by which the scales of weights were chosen, in words; none if by the weights alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
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

impl Manifest {
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
        for (file, expected) in &manifest.files {
            compare(file, hash_file(&dir.join(file))?, expected)?;
        }
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
        let path = dir.join(MANIFEST_FILE);
        let io_error = |source| BundleError::Io { path: path.clone(), source };
        let found_bytes = fs::metadata(&path).map_err(io_error)?.len();
        if MANIFEST_BYTES_MAX < found_bytes {
            let max_bytes = MANIFEST_BYTES_MAX;
            return Err(BundleError::TooLarge { path, found_bytes, max_bytes });
        }
        let text = fs::read_to_string(&path).map_err(io_error)?;
        let manifest = Self::parse(&text).map_err(|error| match error {
            BundleError::Parse { source, .. } => BundleError::Parse { path, source },
            other => other,
        })?;
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
        let manifest: Self = toml::from_str(text).map_err(|source| BundleError::Parse {
            path: MANIFEST_FILE.into(),
            source: Box::new(source),
        })?;
        if manifest.format != FORMAT {
            return Err(BundleError::Format { found: manifest.format });
        }
        if !is_name(&manifest.name) {
            return Err(BundleError::Name { found: manifest.name });
        }
        let layout = Carry::layout(&manifest.model);
        let mut expected = layout.fields();
        let mut found = manifest.carry.iter();
        loop {
            match (expected.next(), found.next()) {
                (None, None) => break,
                (a, b) if a == b => {}
                (a, b) => {
                    let path = a.or(b).map(|spec| spec.path.clone()).unwrap_or_default();
                    return Err(BundleError::Carry { path });
                }
            }
        }
        if let Some(file) = manifest.files.keys().find(|file| !is_plain(file)) {
            return Err(BundleError::FileName { file: file.clone() });
        }
        for file in [MODEL_FILE, TOKENIZER_FILE] {
            if !manifest.files.contains_key(file) {
                return Err(BundleError::MissingFile { file });
            }
        }
        Ok(manifest)
    }

    /// The manifest as TOML, in the one form that [`Manifest::fingerprint`] is taken of.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Identifies the model: equal only if weights, graph, tokenizer and layout are.
    pub fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(self.to_toml().as_bytes()).as_bytes()
    }

    /// The layout of a session record.
    pub fn layout(&self) -> Carry<TensorSpec> {
        Carry::layout(&self.model)
    }
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
