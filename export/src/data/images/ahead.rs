//! Threads that make what will be asked for next, in an order that does not depend on them.

#[cfg(test)]
mod tests;

use std::{
    panic,
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};

/// Limits of [`Ahead`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AheadLimits {
    /// Threads; at least 1.
    pub threads_max: usize,
    /// Items that each thread keeps ready beside the one that it works on.
    pub ready_max: usize,
}

/// An iterator over what threads make: item `i` comes from thread `i % threads`, so the order is that
/// of the items whatever each of them takes.
#[derive(Debug)]
pub struct Ahead<T> {
    /// One for each thread.
    makers: Vec<Maker<T>>,
    /// Whose turn it is.
    turn: usize,
}

#[derive(Debug)]
struct Maker<T> {
    /// None once the thread has nothing more to give.
    items: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Starts the threads; `share` tells what thread `i` makes: items `i`, `i + threads` and so on.
    ///
    /// # Panics
    /// If there are to be no threads, or the system gives none.
    pub fn new<I>(limits: AheadLimits, share: impl Fn(usize) -> I) -> Self
    where
        I: Iterator<Item = T> + Send + 'static,
    {
        assert!(0 < limits.threads_max, "somebody has to make the items");
        let start = |thread| {
            let (sender, items) = sync_channel(limits.ready_max);
            let share = share(thread);
            // Nobody receives once the iterator is dropped.
            let make = move || share.map(|it| sender.send(it)).find(Result::is_err);
            let thread = thread::Builder::new().name(format!("batches-{thread}"));
            let thread = thread.spawn(move || drop(make())).expect("threads can be started");
            Maker { items: Some(items), thread: Some(thread) }
        };
        Self { makers: (0..limits.threads_max).map(start).collect(), turn: 0 }
    }
}

impl<T> Iterator for Ahead<T> {
    type Item = T;

    /// # Panics
    /// If the thread whose turn it is did.
    fn next(&mut self) -> Option<T> {
        let turn = self.turn;
        let maker = &mut self.makers[turn];
        let item = maker.items.as_ref()?.recv().ok();
        if item.is_none() {
            maker.items = None;
            if let Some(Err(payload)) = maker.thread.take().map(JoinHandle::join) {
                panic::resume_unwind(payload);
            }
        }
        self.turn = (turn + usize::from(item.is_some())) % self.makers.len();
        item
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        for maker in &mut self.makers {
            maker.items = None;
        }
        for maker in &mut self.makers {
            // A panic has been seen by whoever took the item, or is of no interest any more.
            let _ = maker.thread.take().map(JoinHandle::join);
        }
    }
}
