//! The cut of a ragged step: which packed tokens belong to which lane. Parsed once for each kernel
//! call, so that a kernel that holds a [`Segments`] cannot write where it must not.

#[cfg(test)]
mod tests;

use std::ops::Range;

use thiserror::Error;

/// Highest position of a token plus one: up to here every position is exact in an f64 angle.
pub const POSITION_MAX: i64 = 1 << 53;

/// A ragged step as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct RawSegments<'a> {
    /// Prefix sums, `[B+1]`: segment `b` is tokens `cuts[b]..cuts[b+1]`.
    pub cuts: &'a [i32],
    /// Row of each segment's state, `[B]`.
    pub lanes: &'a [i32],
    /// Whether the lane's old content is void, `[B]`.
    pub fresh: &'a [bool],
}

/// A ragged step that holds together.
///
/// # Invariants
/// - Segments are not empty, follow one another and cover tokens `0..N`.
/// - Lanes exist and no two segments share one.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    raw: RawSegments<'a>,
    lanes_extent: usize,
}

/// Where each segment of a step begins in its session.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a>(&'a [i64]);

/// Reads steps; keeps the memory for it.
#[derive(Clone, Debug, Default)]
pub struct SegmentsReader {
    /// One bit for each lane, all clear between calls.
    seen: Vec<u64>,
}

/// Why a step is refused. Nothing has been written.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SegmentsError {
    #[error("segments has {found} entries; {expected} are needed, one more than lanes")]
    CutsLength { found: usize, expected: usize },
    #[error("{input} has {found} entries; {expected} are needed, one for each segment")]
    Length { input: &'static str, found: usize, expected: usize },
    #[error("segments[0] is {found}; it must be 0")]
    FirstCut { found: i32 },
    #[error("segment {segment} is tokens {start}..{end}; it must hold at least one")]
    Empty { segment: usize, start: i32, end: i32 },
    #[error("segments end at {found}, but the step has {expected} tokens")]
    LastCut { found: i32, expected: usize },
    #[error("lanes[{segment}] is {found}; lanes are 0..{extent}")]
    Lane { segment: usize, found: i32, extent: usize },
    #[error("lanes[{segment}] is {lane}, which an earlier segment already has")]
    LaneTwice { segment: usize, lane: i32 },
    #[error("positions[{segment}] is {found}; a fresh segment begins at 0")]
    FreshPosition { segment: usize, found: i64 },
    #[error("segment {segment} is at positions {start}..{start}+{tokens}; positions are 0..{max}")]
    Position { segment: usize, start: i64, tokens: usize, max: i64 },
}

impl SegmentsReader {
    /// Parses a step of `tokens` tokens over an arena of `lanes_extent` lanes.
    ///
    /// # Errors
    /// If the step breaks an invariant of [`Segments`].
    pub fn read<'a>(
        &mut self,
        raw: RawSegments<'a>,
        tokens: usize,
        lanes_extent: usize,
    ) -> Result<Segments<'a>, SegmentsError> {
        read_cuts(&raw, tokens)?;
        let words = lanes_extent.div_ceil(64);
        if self.seen.len() < words {
            self.seen.resize(words, 0);
        }
        let outcome = self.read_lanes(raw.lanes, lanes_extent);
        for &lane in raw.lanes {
            if let Some(lane) = lane_within(lane, lanes_extent) {
                self.seen[lane / 64] = 0;
            }
        }
        outcome.map(|()| Segments { raw, lanes_extent })
    }

    fn read_lanes(&mut self, lanes: &[i32], extent: usize) -> Result<(), SegmentsError> {
        for (segment, &found) in lanes.iter().enumerate() {
            let Some(lane) = lane_within(found, extent) else {
                return Err(SegmentsError::Lane { segment, found, extent });
            };
            let (word, bit) = (&mut self.seen[lane / 64], 1 << (lane % 64));
            if *word & bit != 0 {
                return Err(SegmentsError::LaneTwice { segment, lane: found });
            }
            *word |= bit;
        }
        Ok(())
    }
}

impl<'a> Segments<'a> {
    /// `B`.
    pub fn count(&self) -> usize {
        self.raw.lanes.len()
    }

    /// `N`.
    pub fn tokens(&self) -> usize {
        index(self.raw.cuts[self.count()])
    }

    /// Lanes of the arena, named or not.
    pub fn lanes_extent(&self) -> usize {
        self.lanes_extent
    }

    /// The packed tokens of `segment`.
    pub fn range(&self, segment: usize) -> Range<usize> {
        index(self.raw.cuts[segment])..index(self.raw.cuts[segment + 1])
    }

    /// The row of the arena that `segment` advances.
    pub fn lane(&self, segment: usize) -> usize {
        index(self.raw.lanes[segment])
    }

    pub fn fresh(&self, segment: usize) -> bool {
        self.raw.fresh[segment]
    }

    /// The segment that packed token `token` belongs to.
    pub fn of_token(&self, token: usize) -> usize {
        self.raw.cuts.partition_point(|&cut| index(cut) <= token) - 1
    }

    /// Parses the positions at which the segments begin.
    ///
    /// # Errors
    /// If there is not one for each segment, one is negative or leads beyond [`POSITION_MAX`], or a
    /// fresh segment does not begin at 0.
    pub fn positions<'p>(&self, starts: &'p [i64]) -> Result<Positions<'p>, SegmentsError> {
        let (found, expected) = (starts.len(), self.count());
        if found != expected {
            return Err(SegmentsError::Length { input: "positions", found, expected });
        }
        for (segment, &start) in starts.iter().enumerate() {
            let tokens = self.range(segment).len();
            if self.fresh(segment) && start != 0 {
                return Err(SegmentsError::FreshPosition { segment, found: start });
            }
            // A segment's length fits in an i32, so this difference cannot overflow.
            if !(0..=POSITION_MAX - tokens as i64).contains(&start) {
                return Err(SegmentsError::Position { segment, start, tokens, max: POSITION_MAX });
            }
        }
        Ok(Positions(starts))
    }
}

impl Positions<'_> {
    /// Position of the first token of `segment`.
    pub fn start(&self, segment: usize) -> u64 {
        self.0[segment].unsigned_abs()
    }
}

fn read_cuts(raw: &RawSegments<'_>, tokens: usize) -> Result<(), SegmentsError> {
    let RawSegments { cuts, lanes, fresh } = *raw;
    let expected = lanes.len() + 1;
    if cuts.len() != expected {
        return Err(SegmentsError::CutsLength { found: cuts.len(), expected });
    }
    if fresh.len() != lanes.len() {
        let (found, expected) = (fresh.len(), lanes.len());
        return Err(SegmentsError::Length { input: "fresh", found, expected });
    }
    if cuts[0] != 0 {
        return Err(SegmentsError::FirstCut { found: cuts[0] });
    }
    for (segment, ends) in cuts.windows(2).enumerate() {
        let (start, end) = (ends[0], ends[1]);
        if end <= start {
            return Err(SegmentsError::Empty { segment, start, end });
        }
    }
    let found = cuts[lanes.len()];
    if index(found) != tokens {
        return Err(SegmentsError::LastCut { found, expected: tokens });
    }
    Ok(())
}

fn lane_within(lane: i32, extent: usize) -> Option<usize> {
    usize::try_from(lane).ok().filter(|&lane| lane < extent)
}

/// Cuts and lanes of a parsed step are not negative.
fn index(value: i32) -> usize {
    value.unsigned_abs() as usize
}
