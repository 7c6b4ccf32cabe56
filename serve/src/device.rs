//! What runs a step: one trait, and how a device is named.

pub mod classifier;
#[cfg(test)]
pub(crate) mod fake;
pub mod files;
mod initializers;
pub mod ort;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A model on a device, with the states of as many sessions as it has lanes.
pub trait Device {
    fn dims(&self) -> DeviceDims;

    /// Advances the segments of `batch`; returns the logits `[B, V]` of each one's last token.
    ///
    /// # Errors
    /// See [`DeviceError`]. The states of all lanes in the batch are void then.
    fn step(&mut self, batch: &Batch) -> Result<&[f32], DeviceError>;

    /// Copies a lane's state to `record`, field after field.
    ///
    /// # Panics
    /// If `record` does not have `state_bytes`.
    fn read_lane(&self, lane: Lane, record: &mut [u8]) {
        assert_eq!(record.len() as u64, self.dims().state_bytes, "a record is one state");
        self.read_part(lane, 0, record);
    }

    /// Copies `record` to a lane's state.
    ///
    /// # Panics
    /// If `record` does not have `state_bytes`.
    fn write_lane(&mut self, lane: Lane, record: &[u8]) {
        assert_eq!(record.len() as u64, self.dims().state_bytes, "a record is one state");
        self.write_part(lane, 0, record);
    }

    /// Copies to `part` what a lane's state has from byte `at` on. Both are whole elements.
    ///
    /// # Panics
    /// If that is more than there is.
    fn read_part(&self, lane: Lane, at: usize, part: &mut [u8]);

    /// Copies `part` to a lane's state, from byte `at` on. Both are whole elements.
    ///
    /// # Panics
    /// If that is more than there is room for.
    fn write_part(&mut self, lane: Lane, at: usize, part: &[u8]);
}

/// Extents of a model on a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceDims {
    pub lanes: u32,
    /// Tokens in one step.
    pub tokens_max: u32,
    pub vocab: u32,
    /// Bytes of one lane's state.
    pub state_bytes: u64,
}

/// A row of a device's state arena.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Lane(pub u32);

/// The inputs of one step, `N` packed tokens of `B` segments, as the step graph takes them.
#[derive(Debug)]
pub struct Batch {
    /// `[N]`, segment after segment.
    pub tokens: Vec<i64>,
    /// `[B+1]`: segment `b` is `segments[b]..segments[b+1]`.
    pub segments: Vec<i32>,
    /// `[B]`: where each segment's state is.
    pub lanes: Vec<i32>,
    /// `[B]`: absolute position of each segment's first token.
    pub positions: Vec<i64>,
    /// `[B]`: the lane's old content is void.
    pub fresh: Vec<bool>,
}

/// Why a step could not be run.
#[derive(Debug, Error)]
#[error("device: {0}")]
pub struct DeviceError(pub String);

/// A device as `--device` names it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct DeviceSpec {
    /// First and last core; none leaves the choice to the operating system.
    pub cores: Option<(u32, u32)>,
}

/// Why a name is not that of a device.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum DeviceSpecError {
    #[error("device {0:?} is not of the form cpu, cpu:CORE or cpu:FIRST-LAST")]
    Form(String),
    #[error("device {0:?} ends before it begins")]
    Order(String),
}

impl Batch {
    /// An empty batch with room for `tokens_max` tokens of `segments_max` segments.
    pub fn with_capacity(tokens_max: usize, segments_max: usize) -> Self {
        let mut segments = Vec::with_capacity(segments_max + 1);
        segments.push(0);
        Self {
            tokens: Vec::with_capacity(tokens_max),
            segments,
            lanes: Vec::with_capacity(segments_max),
            positions: Vec::with_capacity(segments_max),
            fresh: Vec::with_capacity(segments_max),
        }
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.segments.truncate(1);
        self.lanes.clear();
        self.positions.clear();
        self.fresh.clear();
    }

    /// Appends a segment. A state that has seen nothing is void, so position 0 means fresh.
    pub fn push(&mut self, lane: Lane, position: u64, tokens: impl Iterator<Item = u32>) {
        self.tokens.extend(tokens.map(i64::from));
        self.segments.push(i32::try_from(self.tokens.len()).expect("at most tokens_max"));
        self.lanes.push(i32::try_from(lane.0).expect("at most lanes_max"));
        self.positions.push(i64::try_from(position).expect("no log has 2^63 tokens"));
        self.fresh.push(position == 0);
    }

    /// Number of segments, `B`.
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

impl DeviceSpec {
    /// Number of cores; none if the operating system chooses.
    pub fn n_cores(&self) -> Option<u32> {
        self.cores.map(|(first, last)| last - first + 1)
    }

    /// A name fit for a file.
    pub fn slug(&self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cores {
            None => f.write_str("cpu"),
            Some((first, last)) => write!(f, "cpu:{first}-{last}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<Self, DeviceSpecError> {
        if text == "cpu" {
            return Ok(Self { cores: None });
        }
        let form = || DeviceSpecError::Form(text.to_owned());
        let cores = text.strip_prefix("cpu:").ok_or_else(form)?;
        let (first, last) = cores.split_once('-').unwrap_or((cores, cores));
        let first: u32 = first.parse().map_err(|_| form())?;
        let last: u32 = last.parse().map_err(|_| form())?;
        if last < first {
            return Err(DeviceSpecError::Order(text.to_owned()));
        }
        if CORE_MAX < last {
            return Err(form());
        }
        Ok(Self { cores: Some((first, last)) })
    }
}

/// No machine has cores beyond this number.
const CORE_MAX: u32 = 4095;

impl TryFrom<String> for DeviceSpec {
    type Error = DeviceSpecError;

    fn try_from(text: String) -> Result<Self, DeviceSpecError> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> Self {
        spec.to_string()
    }
}
