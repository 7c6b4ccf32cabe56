//! The files of sessions: three for each model on each device, in one folder per model.
//!
//! The folder's name holds the model's fingerprint, so that another version of a model finds its
//! own sessions and leaves the others alone. Sessions in the files of a device that is not there any
//! more move to the files of those that are.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aerie_state_cache::{MappedFile, Storage};
use tracing::{info, warn};

use super::{StartError, bundles::Draft};
use crate::{
    device::DeviceSpec,
    planted::{Bug, planted},
    service::Hex,
    sessions::{self, SessionId, Sessions},
    store::{self, Files, Packing, Sizes, Store, state_record_bytes},
};

/// The sessions of a model on a device.
pub(super) type Open = (Store<MappedFile>, Sessions);

/// Whose sessions, and where they are kept.
#[derive(Debug)]
pub(super) struct Owner {
    dir: PathBuf,
    sizes: Sizes,
    config: sessions::Config,
}

impl Owner {
    pub(super) fn new(
        data_dir: &Path,
        model: &Draft,
        config: &sessions::Config,
        lanes_max: u32,
    ) -> Self {
        let Draft { manifest, fingerprint, .. } = model;
        let folder = format!("{}-{}", manifest.name, Hex(&fingerprint[..6]));
        let packing = Packing::new(&manifest.layout(), config.parked_windows);
        // One for whoever is in a lane and one for whoever comes in its stead is the least; more than all sessions
        // may have are of no use.
        let useful = config.sessions_max.saturating_mul(config.states_max);
        let states = config.states_bytes_max / state_record_bytes(&packing);
        let states = u32::try_from(states).unwrap_or(u32::MAX);
        Self {
            dir: data_dir.join("sessions").join(folder),
            sizes: Sizes {
                sessions: config.sessions_max,
                states: states.min(useful).max(lanes_max.saturating_add(1)),
                log_tokens: config.log_tokens_max,
                packing,
                fingerprint: *fingerprint,
            },
            config: *config,
        }
    }

    /// Opens the files of a device and recovers what they hold.
    fn open(&self, device: &Path) -> Result<Open, StartError> {
        let files = Files::open(device, &self.sizes)
            .map_err(|(path, source)| StartError::Cache { path, source })?;
        Ok(Store::recover(files, self.config.durability, self.config.states_max))
    }
}

/// Opens the files of `devices`, in their order, and moves in who has lost its device.
pub(super) fn open_all(owner: &Owner, devices: &[DeviceSpec]) -> Result<Vec<Open>, StartError> {
    let io_error = |source| StartError::Io { path: owner.dir.clone(), source };
    fs::create_dir_all(&owner.dir).map_err(io_error)?;
    let here: Vec<PathBuf> = devices.iter().map(|device| owner.dir.join(device.slug())).collect();
    let mut stores =
        here.iter().map(|device| owner.open(device)).collect::<Result<Vec<_>, StartError>>()?;
    for i in 1..stores.len() {
        let (stores, rest) = stores.split_at_mut(i);
        stores.iter_mut().for_each(|store| keep_later(store, &mut rest[0]));
    }
    for device in devices_on_disk(&owner.dir).map_err(io_error)? {
        if !here.contains(&device) {
            rehome(owner, &device, &mut stores)?;
        }
    }
    Ok(stores)
}

/// Forgets, of each session that both have, the row of the earlier epoch: the server died while it moved.
pub(crate) fn keep_later<S: Storage>(
    (one, ones): &mut (Store<S>, Sessions),
    (other, others): &mut (Store<S>, Sessions),
) {
    let both: Vec<SessionId> = one.ids().filter(|id| other.has(*id)).collect();
    for id in both {
        if planted(Bug::IgnoreEpoch) || one.epoch(ones, id) < other.epoch(others, id) {
            one.forget_recovered(ones, id);
        } else {
            other.forget_recovered(others, id);
        }
    }
}

/// Every device that has files, as their path without extension.
fn devices_on_disk(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut devices = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == store::ROWS) {
            devices.insert(path.with_extension(""));
        }
    }
    Ok(devices)
}

/// Moves the sessions of a device that is gone to `stores`, and removes its files once all have moved.
fn rehome(owner: &Owner, device: &Path, stores: &mut [Open]) -> Result<(), StartError> {
    let mut orphan = owner.open(device)?;
    // From a time before, of which this file was not told; or the server died while it moved.
    stores.iter_mut().for_each(|store| keep_later(store, &mut orphan));
    let (mut orphan, mut sessions) = orphan;
    let ids: Vec<_> = orphan.ids().collect();
    let mut left = ids.len();
    for &id in &ids {
        let (store, others) =
            stores.iter_mut().min_by_key(|(store, _)| store.len()).expect("there is a device");
        if owner.config.sessions_max as usize <= store.len() {
            break;
        }
        if !orphan.wake(&mut sessions, id) {
            // It was there a moment ago; what is damaged is said by the store.
            continue;
        }
        let tenant = sessions.expect(id).record.tenant;
        let moved =
            orphan.pack(&mut sessions, id).and_then(|parcel| store.unpack(others, id, &parcel));
        orphan.sleep(&mut sessions, id);
        store.sleep(others, id);
        match moved {
            Ok(_) => {
                left -= 1;
                store.note_tenant(tenant);
            }
            Err(error) => warn!(session = %id, %error, "a session could not be moved"),
        }
    }
    // Only now: until they are safe in the other files, sessions stay in these. If we are killed
    // in between, they are moved again, and the same is written once more.
    for (store, _) in stores.iter_mut() {
        store.flush().map_err(|source| StartError::Io { path: device.to_owned(), source })?;
    }
    if 0 < left {
        warn!(device = %device.display(), left, "sessions of a device that is gone find no room");
        return Ok(());
    }
    drop(orphan);
    for kind in [store::STATES, store::LOGS, store::ROWS] {
        let path = device.with_extension(kind);
        fs::remove_file(&path).map_err(|source| StartError::Io { path, source })?;
    }
    info!(device = %device.display(), sessions = ids.len(), "moved sessions to other devices");
    Ok(())
}
