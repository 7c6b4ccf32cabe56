//! Storage in memory that fails on demand and remembers enough to crash. For tests.

use std::{io, ops::Range};

use super::{Storage, slice};

/// Storage that obeys a script of faults, and whose crash images tests can open again.
#[derive(Clone, Debug, Default)]
pub struct FaultyStorage {
    bytes: Vec<u8>,
    /// What a loss of power leaves for certain.
    flushed: Vec<u8>,
    /// Since the last flush, in order.
    unflushed: Vec<Write>,
    n_writes: u64,
    fault: Option<Fault>,
    n_failed: u64,
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Number of the write that fails, as [`FaultyStorage::n_writes`] counts.
    pub write: u64,
    /// How many of its bytes are written all the same.
    pub torn_at: usize,
    /// Whether every later write fails too, without writing anything: the process is dead.
    pub is_last: bool,
}

#[derive(Clone, Debug)]
struct Write {
    offset: usize,
    bytes: Vec<u8>,
}

impl FaultyStorage {
    /// Storage that holds `bytes`, all of them flushed.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { flushed: bytes.clone(), bytes, ..Self::default() }
    }

    /// Arms a fault, or disarms the last one.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// Number of writes asked for so far.
    pub fn n_writes(&self) -> u64 {
        self.n_writes
    }

    /// Number of writes that failed so far.
    pub fn n_failed(&self) -> u64 {
        self.n_failed
    }

    /// The bytes, to damage them behind the back of the cache.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What a new process finds when this one was killed: everything written.
    pub fn killed(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            flushed: self.flushed.clone(),
            unflushed: self.unflushed.clone(),
            ..Self::default()
        }
    }

    /// What a new process finds when power was lost: what was flushed, and of each later write, in
    /// order, the range of bytes that `survives` picks when told their number.
    pub fn powerless(&self, mut survives: impl FnMut(usize) -> Range<usize>) -> Self {
        let mut bytes = self.flushed.clone();
        bytes.resize(self.bytes.len(), 0);
        for write in &self.unflushed {
            let range = survives(write.bytes.len());
            bytes[write.offset..][range.clone()].copy_from_slice(&write.bytes[range]);
        }
        Self::new(bytes)
    }
}

impl Storage for FaultyStorage {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn grow(&mut self, size_bytes: u64) -> io::Result<()> {
        let len = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.bytes.resize(len, 0);
        Ok(())
    }

    fn read(&self, offset: u64, n_bytes: u64) -> io::Result<&[u8]> {
        slice(&self.bytes, offset, n_bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        slice(&self.bytes, offset, bytes.len() as u64)?;
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let n_written = match self.fault {
            Some(fault) if self.n_writes == fault.write => Some(fault.torn_at.min(bytes.len())),
            Some(fault) if fault.is_last && fault.write < self.n_writes => Some(0),
            _ => None,
        };
        self.n_writes += 1;
        let bytes = &bytes[..n_written.unwrap_or(bytes.len())];
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.unflushed.push(Write { offset, bytes: bytes.to_vec() });
        if n_written.is_some() {
            self.n_failed += 1;
            return Err(io::Error::other("scripted fault"));
        }
        Ok(())
    }

    fn discard(&mut self, offset: u64, n_bytes: u64) -> io::Result<()> {
        let n_bytes = usize::try_from(n_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.write(offset, &vec![0; n_bytes])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed.clone_from(&self.bytes);
        self.unflushed.clear();
        Ok(())
    }
}
