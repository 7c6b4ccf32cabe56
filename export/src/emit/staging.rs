//! A folder that appears whole or not at all: it is filled beside its place, then renamed.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aerie_models::bundle::MANIFEST_FILE;

use crate::emit::{EmitError, io_error};

/// A bundle in the making; it is removed unless [`Staging::commit`] is reached.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    out: PathBuf,
    /// Keeps others from filling the folder at the same time.
    _claim: File,
}

impl Staging {
    /// Makes the folder that is to become `out`; what an earlier run that was killed left is cleared.
    pub(crate) fn new(out: &Path, force: bool) -> Result<Self, EmitError> {
        let path = beside(out, "partial")?;
        fs::create_dir_all(&path).map_err(io_error(&path))?;
        let claim = claim(&path)?;
        let staging = Self { path, out: out.to_owned(), _claim: claim };
        if out.exists() && !force {
            return Err(EmitError::Exists { path: out.to_owned() });
        }
        if out.exists() && !out.join(MANIFEST_FILE).exists() {
            return Err(EmitError::NotABundle { path: out.to_owned() });
        }
        staging.clear()?;
        Ok(staging)
    }

    fn clear(&self) -> Result<(), EmitError> {
        for entry in fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let entry = entry.map_err(io_error(&self.path))?.path();
            let removed =
                if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
            removed.map_err(io_error(&entry))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the folder is to become.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Writes a file of the folder.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), EmitError> {
        let path = self.path.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error(&path))
    }

    /// Makes a folder within, for what is gone before [`Staging::commit`].
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, EmitError> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(io_error(&path))?;
        Ok(path)
    }

    pub(crate) fn remove_folder(&self, name: &str) -> Result<(), EmitError> {
        remove(&self.path.join(name))
    }

    /// Puts the folder in its place.
    pub(crate) fn commit(self) -> Result<(), EmitError> {
        let replaced = beside(&self.out, "replaced")?;
        remove(&replaced)?;
        if self.out.exists() {
            fs::rename(&self.out, &replaced).map_err(io_error(&self.out))?;
        }
        if let Err(error) = fs::rename(&self.path, &self.out) {
            // Best effort: what was there comes back, and the error is told either way.
            let _ = fs::rename(&replaced, &self.out);
            return Err(io_error(&self.out)(error));
        }
        remove(&replaced)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit there is nothing by this name; an error leaves a folder whose name says so.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Takes the folder for as long as the result lives; whoever comes second is refused.
fn claim(path: &Path) -> Result<File, EmitError> {
    let folder = File::open(path).map_err(io_error(path))?;
    match folder.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(EmitError::Claimed { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(io_error(path)(source)),
    }
    // Its owner may have come to an end in between, and put it in its place or removed it.
    let inode = |metadata: fs::Metadata| metadata.ino();
    let ours = folder.metadata().map(inode).map_err(io_error(path))?;
    if fs::metadata(path).map(inode).ok() != Some(ours) {
        return Err(EmitError::Claimed { path: path.to_owned() });
    }
    Ok(folder)
}

/// `.<name>.<state>` beside `out`.
fn beside(out: &Path, state: &str) -> Result<PathBuf, EmitError> {
    let Some(name) = out.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path does not name a folder");
        return Err(EmitError::Io { path: out.to_owned(), source });
    };
    Ok(out.with_file_name(format!(".{}.{state}", name.to_string_lossy())))
}

fn remove(path: &Path) -> Result<(), EmitError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}
