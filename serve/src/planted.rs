//! Bugs that a test may plant, to see whether the simulation finds them. A build without tests has none.

/// A bug of the kind that servers like this one have had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(not(test), expect(dead_code, reason = "planted by tests alone"))]
pub(crate) enum Bug {
    /// Whoever asks with a position is served wherever the session stands.
    IgnorePosition,
    /// A request that is sent again is run again.
    RunAgain,
    /// Turns and rewinds begin no branch: what an earlier one left on a tape passes for the end of a later.
    OneBranch,
    /// What was written is shown before it is on the disk.
    SkipFlush,
    /// A lane that is taken stays free for others.
    AliasLane,
    /// A new session begins with half of the state that its lane had.
    ResetHalf,
    /// Of two rows of a session, one is taken without looking at the epochs.
    IgnoreEpoch,
    /// The state of a prompt's beginning is taken for that of another, whose last token differs.
    LongPrefix,
    /// A fork goes on with the log of its origin after that has gone on otherwise.
    ShareForever,
    /// A session that was changed is let to sleep before its row tells of it.
    SleepEarly,
    /// Nobody looks whose a session is.
    SkipTenant,
    /// Sessions with names give way as all others.
    EvictNamed,
    /// Nobody is told of a session that gives way.
    EvictSilently,
    /// The state of a session that is carried away is said to have seen a token more.
    MoveState,
}

#[cfg(test)]
thread_local! {
    pub(crate) static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether `bug` is planted.
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
