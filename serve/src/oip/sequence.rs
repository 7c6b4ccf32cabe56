//! Sequences: sessions under names that clients choose as they like, a number or a text.
//!
//! A sequence is a session that is kept, under an id that follows from its tenant, its model and its name. It also
//! follows from a key that only this server has, so that no other tenant can be there first.
//!
//! ```text
//! <data>/sequences.key   32 random bytes, mode 0600
//! ```

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aerie_proto::inference::infer_parameter::ParameterChoice;
use thiserror::Error;
use uuid::Builder;

use super::parameters::{Parameters, not};
use crate::{admission::Reject, auth::TenantId, sessions::SessionId};

/// What ids of sequences follow from, beside their names.
#[derive(Clone)]
pub struct SequenceKey([u8; KEY_BYTES]);

/// What a request says of its sequence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sequence {
    pub name: SequenceName,
    /// Forget what was, and begin anew.
    pub starts: bool,
    /// Forget it when the request is answered.
    pub ends: bool,
}

/// What a client calls its sequence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SequenceName {
    /// Never 0.
    Number(i128),
    /// Never empty.
    Text(String),
}

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: is not the {KEY_BYTES} bytes of a key", path.display())]
    Length { path: PathBuf },
}

const KEY_BYTES: usize = 32;
const FILE: &str = "sequences.key";
/// Of a name that is a text.
const NAME_BYTES_MAX: usize = 128;

impl SequenceKey {
    /// Reads the key in `data_dir`, which is made if it is not there yet.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn open(data_dir: &Path) -> Result<Self, KeyError> {
        let path = data_dir.join(FILE);
        let io_error = |source| KeyError::Io { path: path.clone(), source };
        if !path.exists() {
            fs::create_dir_all(data_dir).map_err(io_error)?;
            let new = path.with_added_extension("new");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)
                .map_err(io_error)?;
            let written = file.write_all(&rand::random::<[u8; KEY_BYTES]>());
            written.and_then(|()| file.sync_all()).map_err(io_error)?;
            fs::rename(&new, &path).map_err(io_error)?;
        }
        let file = fs::File::open(&path).map_err(io_error)?;
        let mut key = Vec::new();
        file.take(KEY_BYTES as u64 + 1).read_to_end(&mut key).map_err(io_error)?;
        let key = key.try_into().map_err(|_| KeyError::Length { path })?;
        Ok(Self(key))
    }

    /// The session that a tenant's sequence with a model is.
    pub fn session(&self, tenant: TenantId, model: &str, name: &SequenceName) -> SessionId {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&tenant.0.to_le_bytes());
        // With its length before it, no name of a model runs into the name of a sequence.
        hasher.update(&(model.len() as u64).to_le_bytes()).update(model.as_bytes());
        match name {
            SequenceName::Number(number) => hasher.update(b"number").update(&number.to_le_bytes()),
            SequenceName::Text(text) => hasher.update(b"text").update(text.as_bytes()),
        };
        let hash = hasher.finalize();
        let bytes = *hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
        // In the form of version 8 (RFC 9562 §5.8): ids of other sessions are of version 4.
        SessionId(Builder::from_custom_bytes(bytes).into_uuid().as_u128())
    }
}

impl Sequence {
    /// Takes what `parameters` say of a sequence; none if they name none, which 0 and the empty text do not either.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if they say what cannot be.
    pub fn take(parameters: &mut Parameters) -> Result<Option<Self>, Reject> {
        let name = match parameters.take("sequence_id") {
            None => None,
            Some(ParameterChoice::Int64Param(number)) => Some(SequenceName::Number(number.into())),
            Some(ParameterChoice::Uint64Param(number)) => Some(SequenceName::Number(number.into())),
            Some(ParameterChoice::StringParam(text)) if text.len() <= NAME_BYTES_MAX => {
                Some(SequenceName::Text(text))
            }
            Some(_) => return Err(not("sequence_id", "a whole number, or a text of 128 bytes")),
        };
        let starts = parameters.take_flag("sequence_start")?;
        let ends = parameters.take_flag("sequence_end")?;
        let name = name.filter(|it| match it {
            SequenceName::Number(number) => *number != 0,
            SequenceName::Text(text) => !text.is_empty(),
        });
        Ok(name.map(|name| Self { name, starts, ends }))
    }
}

impl Default for SequenceKey {
    /// A key of its own, for a server that keeps nothing.
    fn default() -> Self {
        Self(rand::random())
    }
}

/// Says nothing of the key.
impl std::fmt::Debug for SequenceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SequenceKey(..)")
    }
}
