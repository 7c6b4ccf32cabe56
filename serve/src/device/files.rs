//! The files of a bundle, each mapped once: their hashes are taken of the bytes that the tokenizer and
//! the sessions of all devices then read.

#![allow(unsafe_code, reason = "a map is only as constant as its file")]

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use aerie_models::{
    BundleError, Manifest,
    bundle::{Bundled, verify_bytes},
};
use memmap2::Mmap;

/// The files that a manifest names, as memory that is shared with the page cache.
#[derive(Debug)]
pub struct BundleFiles {
    dir: PathBuf,
    maps: BTreeMap<String, Mmap>,
}

impl BundleFiles {
    /// Maps the files in `dir`; none is read yet.
    ///
    /// # Errors
    /// [`BundleError::Io`] if one is not there.
    pub fn open<M: Bundled>(dir: &Path, manifest: &Manifest<M>) -> Result<Self, BundleError> {
        let open = |file: &String| {
            let path = dir.join(file);
            let map = map(&path).map_err(|source| BundleError::Io { path, source })?;
            Ok((file.clone(), map))
        };
        let maps = manifest.files.keys().map(open).collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.to_owned(), maps })
    }

    /// Holds every file to the hash in the manifest, on all cores.
    ///
    /// # Errors
    /// [`BundleError::Hash`] for the first that differs.
    pub fn verify<M: Bundled>(&self, manifest: &Manifest<M>) -> Result<(), BundleError> {
        manifest
            .files
            .iter()
            .try_for_each(|(file, expected)| verify_bytes(file, self.bytes(file), expected))
    }

    /// The bytes of a file.
    ///
    /// # Panics
    /// If the manifest does not name it.
    pub fn bytes(&self, file: &str) -> &[u8] {
        self.find(file).expect("a file of the manifest")
    }

    /// The bytes of a file that a graph refers to, if the manifest names it.
    pub(super) fn find(&self, file: &str) -> Option<&[u8]> {
        self.maps.get(file).map(|map| &map[..])
    }

    /// Where the bundle is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: bytes under a shared borrow must not change. Bundles are written beside their place and
    // moved there, never changed where they are; whoever does so regardless changes weights under
    // ONNX Runtime, which would map the file itself.
    unsafe { Mmap::map(&file) }
}
