//! The one seam to the disk: bytes at offsets, and the file that holds them.
#![allow(unsafe_code, reason = "a map is only as constant as its file")]

#[cfg(any(test, feature = "faulty"))]
pub(crate) mod faulty;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use memmap2::{Mmap, MmapOptions};
use rustix::{fs::FallocateFlags, io::Errno};

/// Bytes at offsets, of a size that is set once.
///
/// A write may fail, and may then have written any prefix of its bytes. What was written survives
/// the process; what was flushed survives the loss of power.
pub trait Storage: fmt::Debug {
    /// How long the storage is, in bytes.
    ///
    /// # Errors
    /// Whatever the medium reports.
    fn size(&self) -> io::Result<u64>;

    /// Grows the storage; new bytes are zero.
    ///
    /// # Errors
    /// Whatever the medium reports.
    fn grow(&mut self, size_bytes: u64) -> io::Result<()>;

    /// Shows `n_bytes` from `offset`, without a copy.
    ///
    /// # Errors
    /// `UnexpectedEof` if the storage ends before; else whatever the medium reports.
    fn read(&self, offset: u64, n_bytes: u64) -> io::Result<&[u8]>;

    /// Writes `bytes` from `offset`, in order.
    ///
    /// # Errors
    /// `UnexpectedEof` if the storage ends before; else whatever the medium reports, for instance
    /// that the disk is full.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes `n_bytes` from `offset` zeros, and gives their place back where the medium can.
    ///
    /// # Errors
    /// As [`Storage::write`].
    fn discard(&mut self, offset: u64, n_bytes: u64) -> io::Result<()>;

    /// Returns when every write so far would survive the loss of power.
    ///
    /// # Errors
    /// Whatever the medium reports.
    fn flush(&mut self) -> io::Result<()>;
}

/// A sparse file, locked for as long as it is open.
///
/// Reads go through a map, writes through `pwrite`; both see the same page cache. Storing through
/// the map would be no faster, and would turn a full disk from an error into a SIGBUS.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Opens the file, or makes an empty one, and locks it against other processes.
    ///
    /// # Errors
    /// `WouldBlock` if the file is open elsewhere; else whatever the system reports.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            TryLockError::Error(error) => error,
        })?;
        let size_bytes = file.metadata()?.len();
        if size_bytes == 0 {
            // The name of a new file is durable only when its directory is.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        }
        let map = map(&file, size_bytes)?;
        Ok(Self { file, map })
    }
}

impl Storage for MappedFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn grow(&mut self, size_bytes: u64) -> io::Result<()> {
        assert!(self.size()? <= size_bytes, "a map must not outlast its file");
        self.file.set_len(size_bytes)?;
        self.map = map(&self.file, size_bytes)?;
        Ok(())
    }

    fn read(&self, offset: u64, n_bytes: u64) -> io::Result<&[u8]> {
        // Touching a page behind the end of the file is a SIGBUS, and the map does not know that
        // somebody has cut the file. Who cuts it after this line ignores the lock as well.
        let end = offset.checked_add(n_bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        if self.size()? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        slice(&self.map, offset, n_bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        slice(&self.map, offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    fn discard(&mut self, offset: u64, n_bytes: u64) -> io::Result<()> {
        slice(&self.map, offset, n_bytes)?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, offset, n_bytes) {
            // Not every file system has holes.
            Err(Errno::OPNOTSUPP) => self.write_zeros(offset, n_bytes),
            result => Ok(result?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl MappedFile {
    fn write_zeros(&self, mut offset: u64, n_bytes: u64) -> io::Result<()> {
        let zeros = [0; 1 << 16];
        let end = offset + n_bytes;
        while offset < end {
            let n = zeros.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            self.file.write_all_at(&zeros[..n], offset)?;
            offset += n as u64;
        }
        Ok(())
    }
}

/// `n_bytes` of `bytes` from `offset`.
fn slice(bytes: &[u8], offset: u64, n_bytes: u64) -> io::Result<&[u8]> {
    let range = usize::try_from(offset).ok().zip(usize::try_from(n_bytes).ok());
    range
        .and_then(|(offset, n_bytes)| bytes.get(offset..)?.get(..n_bytes))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A view of the first `size_bytes` of `file`.
fn map(file: &File, size_bytes: u64) -> io::Result<Mmap> {
    let len = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: bytes under a shared borrow must not change. We write only through `&mut self`, when
    // no borrow of the map is alive, and the lock keeps other processes that use this type out.
    // `read` compares with the size of the file, so no page behind its end is touched.
    unsafe { MmapOptions::new().len(len).map(file) }
}
