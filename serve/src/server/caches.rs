//! The files of parked sessions: one for each model on each device, in one folder per model.
//!
//! The folder's name holds the model's fingerprint, so that another version of a model finds its
//! own sessions and leaves the others alone. Sessions in the file of a device that is not there any
//! more move to the files of those that are.

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use aerie_state_cache::{Config, Fingerprint, StateCache};
use tracing::{info, warn};

use super::{StartError, bundles::Draft};
use crate::{device::DeviceSpec, residency::record_bytes, service::Hex};

const EXTENSION: &str = "sessions";

/// Whose sessions, and where they are kept.
#[derive(Debug)]
pub(super) struct Owner {
    dir: PathBuf,
    config: Config,
}

impl Owner {
    pub(super) fn new(data_dir: &Path, model: &Draft, sessions_max: u32) -> Self {
        let Draft { manifest, fingerprint, .. } = model;
        let folder = format!("{}-{}", manifest.name, Hex(&fingerprint[..6]));
        let config = Config {
            record_bytes: record_bytes(manifest.layout().bytes()),
            records_max: sessions_max,
            fingerprint: Fingerprint(*fingerprint),
        };
        Self { dir: data_dir.join("sessions").join(folder), config }
    }

    fn open(&self, path: &Path) -> Result<StateCache, StartError> {
        StateCache::open(path, self.config)
            .map_err(|source| StartError::Cache { path: path.to_owned(), source })
    }
}

/// Opens the files of `devices`, in their order, and moves in who has lost its device.
pub(super) fn open_all(
    owner: &Owner,
    devices: &[DeviceSpec],
) -> Result<Vec<StateCache>, StartError> {
    let io_error = |source| StartError::Io { path: owner.dir.clone(), source };
    fs::create_dir_all(&owner.dir).map_err(io_error)?;
    let paths: Vec<PathBuf> = devices
        .iter()
        .map(|device| owner.dir.join(device.slug()).with_extension(EXTENSION))
        .collect();
    let mut caches =
        paths.iter().map(|path| owner.open(path)).collect::<Result<Vec<_>, StartError>>()?;
    for entry in fs::read_dir(&owner.dir).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        let is_ours = path.extension().is_some_and(|it| it == EXTENSION);
        if is_ours && !paths.contains(&path) {
            rehome(owner, &path, &mut caches)?;
        }
    }
    Ok(caches)
}

/// Moves the records of `path` to `caches` and removes the file once it is empty.
fn rehome(owner: &Owner, path: &Path, caches: &mut [StateCache]) -> Result<(), StartError> {
    let mut orphan = owner.open(path)?;
    let records: Vec<_> = orphan.records().collect();
    let mut left = records.len();
    for info in &records {
        let emptiest = caches.iter_mut().min_by_key(|cache| cache.len());
        let cache = emptiest.expect("there is a device");
        if owner.config.records_max as usize <= cache.len() {
            break;
        }
        let moved = match orphan.read(info.key) {
            Ok(record) => cache.write(info.key, &[record.bytes], info.used_at).map(drop),
            Err(error) => {
                warn!(session = %info.key, %error, "a session is lost");
                Ok(())
            }
        };
        match moved {
            Ok(()) => left -= 1,
            Err(error) => warn!(session = %info.key, %error, "a session could not be moved"),
        }
    }
    // Only now: until they are safe in the other files, records stay in this one. If we are killed
    // in between, they are moved again, and the same bytes are written once more.
    for cache in caches.iter_mut() {
        cache.flush().map_err(|source| StartError::Io { path: path.to_owned(), source })?;
    }
    if 0 < left {
        warn!(file = %path.display(), left, "sessions of a device that is gone find no room");
        return Ok(());
    }
    drop(orphan);
    fs::remove_file(path).map_err(|source| StartError::Io { path: path.to_owned(), source })?;
    info!(file = %path.display(), sessions = records.len(), "moved sessions to other devices");
    Ok(())
}
