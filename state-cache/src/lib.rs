//! Fixed-size records of bytes in a memory-mapped file, by key; and [`Tapes`], the logs that they are the outcome of.
//!
//! A [`StateCache`] keeps the states of sessions that are not on a device. It knows nothing of what
//! the bytes mean, has no threads, no sockets and no clock, and is owned by one worker: every call
//! takes `&mut self` and there are no locks inside.
//!
//! # The file
//!
//! ```text
//! 0            4096                                                              file_bytes
//! ├─ header ───┼─ plane A ─────────────────────┬─ plane B ─────────────────────────┤
//!              │                               │
//!              ├─ stamps ───┬─ records ────────┤     both planes have this shape
//!                64 B each    one stride each        stride = record_bytes, rounded up to a page
//! ```
//!
//! A record lives in a *slab*: the stamp and the stride with its number in plane A, and the same in
//! plane B. Each plane holds one copy, and a write always goes to the plane that does not hold the
//! latest, so a torn write costs only the copy in the making. The two copies share no page. Stamps
//! lie together so that opening reads a few pages for a thousand slabs; slabs never written are
//! holes in a sparse file. All integers are little-endian, all checksums CRC-32 (IEEE).
//!
//! ```text
//! header                                        stamp
//!  0  magic         8 B   "AerieRec"             0  key         u128
//!  8  format        u32   2                     16  sequence    u64  counts writes to the file
//! 12  records_max   u32                         24  written_at  u64
//! 16  record_bytes  u64                         32  kind        u16  1 record, 2 tombstone
//!                                               34  length      u48  of a short record, else 0
//! 24  fingerprint  32 B                         40  checksum    u32  of the record
//! 56  checksum      u32   of bytes 0..56        44  checksum    u32  of bytes 0..44
//! 60  zero, to the end of the page              48  used_at     u64
//!                                               56  checksum    u32  of bytes 16..24 and 48..56
//!                                               60  zero
//! ```
//!
//! The record is written before its stamp, and the stamp in one piece. Removal and eviction write a
//! tombstone: a stamp with a reason, the caller's number, where the checksum of a record is, and the
//! time of the removal where its last use is. [`StateCache::gone`] tells them until the slab is used
//! again; reason 0 says nothing. [`StateCache::touch`] rewrites only bytes 48..60; if that is torn, `written_at` stands
//! in and nothing else is lost.
//!
//! A record may be *short*, less than `record_bytes`: its checksum is of what was written, its stamp tells how
//! much that was, and what lies behind it is whatever a longer one has left there, or a hole. Format 1 knows
//! none. Its files are read and written as they are, and short records are refused there.
//!
//! CRC-32 finds every flip of up to two bits and every burst of up to 32, and misses other damage
//! once in 2^32. It is there to find accidents, not forgeries; and it is blind to records that carry a CRC-32 of their own
//! behind what that covers, as all of those have the same. With vector carry-less multiplication
//! it runs faster than `memcpy` (`cargo bench -p aerie-state-cache`); in the trial that chose it, on
//! 64 KiB with AVX-512, XXH3 took three times as long and BLAKE3 twelve times.
//!
//! # What survives
//!
//! - **The process is killed, at any instant.** Everything acknowledged: a key holds the last value
//!   whose write returned or, if the kill hit a write, that write's value or the one before. A
//!   record whose eviction had begun may be gone.
//! - **Power fails.** What [`StateCache::flush`] made durable and was not written since is whole, and
//!   a key written once since holds its flushed value or the new one. Where a slab was written twice
//!   or more since, both copies may be damaged: its key may be gone, or an older value come up, but
//!   then it is marked [`RecordInfo::rolled_back`]. What is not marked is never older than the flush.
//!   Whoever wants power loss to cost nothing flushes after each write. This takes a disk that
//!   writes a sector whole or not at all.
//! - **Bits rot.** Every copy is verified before it is handed out and, unless [`Verify::OnRead`] puts
//!   that off, when the file is opened. A damaged one is never returned; the other copy is, marked
//!   [`RecordInfo::rolled_back`]. A copy whose stamp is damaged is a damaged copy.
//!
//! [`Verify::OnRead`] takes nothing from this but the time: what is lost or rolled back is found when
//! it is read, and until then the latest stamp is believed. Only if two slabs have a record of one key,
//! which takes a loss of power, are both verified at once, for the earlier is then removed. Whatever is verified at
//! the opening and found damaged has its stamp damaged as well, so that the next opening comes to the same.
//!
//! # Memory
//!
//! A file takes 23 bytes of memory for each of [`Config::records_max`], whatever it holds, since keys,
//! sequences and checksums are looked up in the stamps:
//!
//! ```text
//! index      2 B  heads of chains, one for two slabs    order   8 B  used_at
//!            4 B  next slab of the same chain                   4 B  a heap of the evictable, a stack of the free
//!            1 B  plane, content, a mark, 4 bits of hash        4 B  where in the heap
//! ```
//!
//! So a look-up reads a stamp or two, and an eviction some where times are equal. They are in the page
//! cache, 128 bytes for each slab, if the machine has room for them; without that, each is a read from
//! the disk.

mod cache;
mod eviction;
mod index;
mod layout;
mod recovery;
mod stamps;
mod storage;
mod tape;

pub use cache::{
    Key, Lease, LeaseError, Leased, ReadError, Record, RecordInfo, ReleaseError, RemoveError,
    StateCache, TouchError, WriteError, Written,
};
pub use layout::{Config, Fingerprint, Gone};
pub use recovery::{OpenError, Recovery, Verify};
#[cfg(any(test, feature = "faulty"))]
pub use storage::faulty::{Fault, FaultyStorage};
pub use storage::{MappedFile, Storage};
pub use tape::{Tape, TapeConfig, TapeError, Tapes};
