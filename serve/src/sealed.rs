//! Sessions as sealed files, to be carried from server to server. Little-endian:
//!
//! ```text
//! magic "aeriesx1", version u32, bytes of the header u32
//! header    TOML: the session's id, and what a server must have to go on with it
//! row       as in the table of sessions
//! log       from u64, n u64, n words of 4 bytes
//! state     computed u64, n u64, n bytes; n is 0 if nothing was computed
//! seal      32 bytes: the BLAKE3 of all before
//! ```
//!
//! A seal finds damage. It is no proof of who wrote a file.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use aerie_models::Manifest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    auth::TenantId,
    service::Hex,
    sessions::{
        Record, SessionId, Word,
        row::{self, RowError},
    },
    store::Parcel,
};

const MAGIC: [u8; 8] = *b"aeriesx1";
/// The file format that this code reads and writes.
const VERSION: u32 = 1;
const SEAL_BYTES: usize = 32;
/// A header is a few kilobytes; what is larger is not one.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// What a file says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    session_id: String,
    /// Name of the model; for people.
    model: String,
    /// Fields of the state in their order, as `path [extents]`.
    layout: Vec<String>,
    /// Operators of the model and the version of each.
    ops: BTreeMap<String, u32>,
    /// BLAKE3 of the manifest of the bundle, which has those of all its files.
    fingerprint: String,
}

/// Why bytes are no session that this server can go on with.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum SealedError {
    #[error("file field `magic` is not that of a session")]
    Magic,
    #[error("file field `version` is {found}; this server reads {VERSION}")]
    Version { found: u32 },
    #[error("the file ends within `{field}`")]
    Truncated { field: &'static str },
    #[error("the file goes on for {found_bytes} bytes after its seal")]
    TooLong { found_bytes: usize },
    #[error("file field `seal` does not fit: the file is damaged")]
    Seal,
    #[error("file field `header` cannot be read: {0}")]
    Header(String),
    #[error("file field `{field}` is {found}, but this server's {model:?} has {expected}")]
    Differs { field: String, found: String, expected: String, model: String },
    #[error("file field `row`: {0}")]
    Row(#[from] RowError),
    #[error("file field `{field}` is impossible")]
    Field { field: &'static str },
}

/// Seals a session of the model of `manifest`.
pub fn seal(manifest: &Manifest, id: SessionId, parcel: &Parcel) -> Vec<u8> {
    let header = toml::to_string(&Header::new(manifest, id)).expect("every field has a form");
    let mut file = Vec::new();
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    let header_bytes = u32::try_from(header.len()).expect("a header is small");
    file.extend_from_slice(&header_bytes.to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&row::encode(&parcel.record));
    file.extend_from_slice(&parcel.log_from.to_le_bytes());
    file.extend_from_slice(&(parcel.log.len() as u64).to_le_bytes());
    parcel.log.iter().for_each(|word| file.extend_from_slice(&word.bits().to_le_bytes()));
    let (computed, state) = parcel.state.as_ref().map_or((0, &[][..]), |(n, it)| (*n, it));
    file.extend_from_slice(&computed.to_le_bytes());
    file.extend_from_slice(&(state.len() as u64).to_le_bytes());
    file.extend_from_slice(state);
    let seal = blake3::hash(&file);
    file.extend_from_slice(seal.as_bytes());
    file
}

/// Opens a file for the model of `manifest`.
///
/// # Errors
/// See [`SealedError`]; what differs is named.
pub fn open(manifest: &Manifest, file: &[u8]) -> Result<(SessionId, Parcel), SealedError> {
    let mut rest = Rest(file);
    if rest.take("magic", 8)? != MAGIC {
        return Err(SealedError::Magic);
    }
    let version = u32::from_le_bytes(rest.array("version")?);
    if version != VERSION {
        return Err(SealedError::Version { found: version });
    }
    let header_bytes = u32::from_le_bytes(rest.array("header")?) as usize;
    if HEADER_BYTES_MAX < header_bytes {
        return Err(SealedError::Field { field: "header" });
    }
    let header = rest.take("header", header_bytes)?;
    let row = rest.take("row", row::BYTES)?;
    let log_from = u64::from_le_bytes(rest.array("log")?);
    let n_log = rest.length("log")?;
    let words = rest.take("log", n_log.checked_mul(4).ok_or_else(|| too_large("log"))?)?;
    let computed = u64::from_le_bytes(rest.array("state")?);
    let n_state = rest.length("state")?;
    let state = rest.take("state", n_state)?;
    let sealed_bytes = file.len() - rest.0.len();
    let seal = rest.take("seal", SEAL_BYTES)?;
    if !rest.0.is_empty() {
        return Err(SealedError::TooLong { found_bytes: rest.0.len() });
    }
    // What is for another model is told apart from what is damaged, so the seal comes first.
    if blake3::hash(&file[..sealed_bytes])
        != *seal.first_chunk::<SEAL_BYTES>().ok_or(SealedError::Seal)?
    {
        return Err(SealedError::Seal);
    }
    let id = check(manifest, header)?;
    let record = Record {
        tenant: TenantId::ANONYMOUS,
        tape: None,
        lineage: None,
        states: Vec::new(),
        name: None,
        ..row::decode(row)?
    };
    let (words, _) = words.as_chunks::<4>();
    let log: Vec<Word> =
        words.iter().map(|bytes| Word::from_bits(u32::from_le_bytes(*bytes))).collect();
    if log.iter().any(|word| manifest.model.vocab <= word.token()) {
        return Err(SealedError::Field { field: "log" });
    }
    if log_from.checked_add(log.len() as u64) != Some(record.position) {
        return Err(SealedError::Field { field: "log" });
    }
    let state_bytes = usize::try_from(manifest.layout().bytes()).unwrap_or(usize::MAX);
    let has_state = !state.is_empty();
    if has_state && (state.len() != state_bytes || record.position < computed || computed == 0) {
        return Err(SealedError::Field { field: "state" });
    }
    // What cannot be computed again must be there.
    if (if has_state { computed } else { 0 }) < log_from {
        return Err(SealedError::Field { field: "state" });
    }
    let state = has_state.then(|| (computed, state.to_vec()));
    Ok((id, Parcel { record, used_at: 0, state, log_from, log }))
}

/// Bytes of a file of a session, at most.
pub fn bytes_max(manifest: &Manifest, log_tokens_max: u32) -> u64 {
    let fixed = HEADER_BYTES_MAX + row::BYTES + SEAL_BYTES + 64;
    fixed as u64 + 4 * u64::from(log_tokens_max) + manifest.layout().bytes()
}

impl Header {
    fn new(manifest: &Manifest, id: SessionId) -> Self {
        let layout = manifest.layout();
        Self {
            session_id: id.to_string(),
            model: manifest.name.clone(),
            layout: layout.fields().map(|it| format!("{} {:?}", it.path, it.shape)).collect(),
            ops: manifest.ops.clone(),
            fingerprint: Hex(&manifest.fingerprint()).to_string(),
        }
    }
}

/// Whether a file is of a session of this model; gives its id.
fn check(manifest: &Manifest, header: &[u8]) -> Result<SessionId, SealedError> {
    let text = std::str::from_utf8(header).map_err(|it| SealedError::Header(it.to_string()))?;
    let header: Header =
        toml::from_str(text).map_err(|it| SealedError::Header(it.message().to_owned()))?;
    let id = SessionId::parse(&header.session_id)
        .ok_or(SealedError::Field { field: "header.session_id" })?;
    let own = Header::new(manifest, id);
    let differs = |field: String, found: String, expected: String| {
        Err(SealedError::Differs { field, found, expected, model: own.model.clone() })
    };
    if header.layout.len() != own.layout.len() {
        let n = |it: &Header| format!("{} fields", it.layout.len());
        return differs("layout".to_owned(), n(&header), n(&own));
    }
    for (i, (found, expected)) in header.layout.iter().zip(&own.layout).enumerate() {
        if found != expected {
            return differs(format!("layout.{i}"), found.clone(), expected.clone());
        }
    }
    let names = header.ops.keys().chain(own.ops.keys());
    for name in names {
        let version = |it: &Header| {
            it.ops
                .get(name)
                .map_or_else(|| "absent".to_owned(), |version| format!("version {version}"))
        };
        if header.ops.get(name) != own.ops.get(name) {
            return differs(format!("ops.{name}"), version(&header), version(&own));
        }
    }
    if header.fingerprint != own.fingerprint {
        return differs("fingerprint".to_owned(), header.fingerprint, own.fingerprint.clone());
    }
    Ok(id)
}

fn too_large(field: &'static str) -> SealedError {
    SealedError::Truncated { field }
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, field: &'static str, n: usize) -> Result<&'a [u8], SealedError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(SealedError::Truncated { field })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], SealedError> {
        let taken = self.take(field, N)?;
        taken.try_into().map_err(|_| SealedError::Truncated { field })
    }

    fn length(&mut self, field: &'static str) -> Result<usize, SealedError> {
        usize::try_from(u64::from_le_bytes(self.array(field)?)).map_err(|_| too_large(field))
    }
}
