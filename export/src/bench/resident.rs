//! How much memory this process holds, as Linux tells it.

#[cfg(test)]
mod tests;

use std::fs;

use serde::{Deserialize, Serialize};

/// Resident memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Resident {
    /// Pages of mapped files: they can be dropped at any time, and processes share them.
    pub(super) file_bytes: u64,
    /// All other pages.
    pub(super) anonymous_bytes: u64,
}

impl Resident {
    /// Of this process, now; none where the system does not tell.
    pub(super) fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let bytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
        };
        Some(Self { file_bytes: bytes("RssFile:")?, anonymous_bytes: bytes("RssAnon:")? })
    }

    /// What came on top of `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            file_bytes: self.file_bytes.saturating_sub(before.file_bytes),
            anonymous_bytes: self.anonymous_bytes.saturating_sub(before.anonymous_bytes),
        }
    }
}
