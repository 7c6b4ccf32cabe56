//! A folder for what nobody keeps: graphs that are written only to be run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::emit::{EmitError, io_error};

/// A folder that goes with the value.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a folder where the system keeps temporary ones.
    pub(crate) fn new() -> Result<Self, EmitError> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("aerie-export-{}-{made}", process::id()));
        fs::create_dir(&path).map_err(io_error(&path))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: it lies where the system clears up.
        let _ = fs::remove_dir_all(&self.path);
    }
}
