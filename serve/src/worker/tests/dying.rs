//! Storage of a process that dies at a certain write, whichever file that goes to.

use std::{cell::Cell, io, rc::Rc};

use aerie_state_cache::{FaultyStorage, Storage};

/// How many more writes there will be; shared by the files of a process.
#[derive(Clone, Debug)]
pub(super) struct Fuse(Rc<Cell<u64>>);

#[derive(Debug)]
pub(super) struct Dying {
    inner: FaultyStorage,
    fuse: Fuse,
}

impl Fuse {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(u64::MAX)))
    }

    /// The process dies at the write after `writes` more.
    pub(super) fn light(&self, writes: u64) {
        self.0.set(writes);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.get() == 0
    }

    fn burn(&self) -> bool {
        let left = self.0.get();
        if left != u64::MAX {
            self.0.set(left.saturating_sub(1));
        }
        0 < left
    }
}

impl Dying {
    pub(super) fn new(inner: FaultyStorage, fuse: &Fuse) -> Self {
        Self { inner, fuse: fuse.clone() }
    }

    pub(super) fn inner(&self) -> &FaultyStorage {
        &self.inner
    }

    /// Damages the record that is `bytes` in a state cache, and its other copy.
    pub(super) fn spoil(&mut self, bytes: &[u8]) {
        const HEADER_BYTES: usize = 4096;

        let file = self.inner.bytes_mut();
        let at = file.windows(bytes.len()).position(|it| it == bytes).expect("it is in the file");
        let plane_bytes = (file.len() - HEADER_BYTES) / 2;
        let in_plane = (at - HEADER_BYTES) % plane_bytes;
        for plane in 0..2 {
            file[HEADER_BYTES + plane * plane_bytes + in_plane] ^= 1;
        }
    }

    fn dead() -> io::Error {
        io::Error::other("the process is dead")
    }
}

impl Storage for Dying {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn grow(&mut self, size_bytes: u64) -> io::Result<()> {
        self.inner.grow(size_bytes)
    }

    fn read(&self, offset: u64, n_bytes: u64) -> io::Result<&[u8]> {
        self.inner.read(offset, n_bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.fuse.burn() {
            return Err(Self::dead());
        }
        if self.fuse.is_dead() {
            // The last one is torn, at a place that the bytes decide.
            let torn_at = usize::from(bytes.first().copied().unwrap_or(0)) % (bytes.len() + 1);
            self.inner.write(offset, &bytes[..torn_at])?;
            return Err(Self::dead());
        }
        self.inner.write(offset, bytes)
    }

    fn discard(&mut self, offset: u64, n_bytes: u64) -> io::Result<()> {
        if !self.fuse.burn() {
            return Err(Self::dead());
        }
        self.inner.discard(offset, n_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.fuse.is_dead() {
            return Err(Self::dead());
        }
        self.inner.flush()
    }
}
