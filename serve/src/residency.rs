//! Moves states between a device's lanes and the state cache; only here do their bytes move.

use crate::device::Lane;

/// A lane as its holder knows it; void once the lane has been given to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LaneTicket {
    pub lane: Lane,
    /// Counts the holders of the lane.
    pub generation: u32,
}
