//! An allocator that counts what a thread holds while it is asked to: whoever links this crate has it.
//! A thread that asks for far too much while it is counted gets nothing, which ends the process; the
//! machine has others to serve.

#![allow(unsafe_code, reason = "an allocator has no other interface")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    panic,
    sync::Once,
};

/// What a thread cannot have while it is counted: more than anybody should notice who looks at the
/// most that was held, and less than the machine has.
const REFUSED_BYTES: isize = 1 << 30;

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// None where nobody counts.
    static COUNT: Cell<Option<Count>> = const { Cell::new(None) };
}

/// Bytes since counting began; what is freed may have been there before.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    held: isize,
    held_max: isize,
}

/// Counts what this thread holds.
pub(crate) struct Meter(());

impl Meter {
    pub(crate) fn start() -> Self {
        COUNT.set(Some(Count::default()));
        Self(())
    }

    /// The most bytes that were held at one time since the start.
    pub(crate) fn stop(self) -> usize {
        let count = COUNT.take().unwrap_or_default();
        count.held_max.max(0).unsigned_abs()
    }
}

/// Has panics be reported beside the count of the thread that panics: what a report takes, a trace of the
/// stack above all, is not the reader's.
pub(crate) fn leave_reports_out() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let count = COUNT.take();
            report(panic);
            COUNT.set(count);
        }));
    });
}

/// Counts a change of what this thread holds; says whether it may be.
fn count(bytes: isize) -> bool {
    let counted = COUNT.try_with(|it| {
        let Some(Count { held, held_max }) = it.get() else { return true };
        let held = held.saturating_add(bytes);
        let held_max = held_max.max(held);
        if 0 < bytes && REFUSED_BYTES < held {
            return false;
        }
        it.set(Some(Count { held, held_max }));
        true
    });
    counted.unwrap_or(true)
}

/// Sizes are at most `isize::MAX`, says [`Layout`].
fn signed(bytes: usize) -> isize {
    bytes.try_into().unwrap_or(isize::MAX)
}

// SAFETY: every request goes to the system's allocator as it is, or is refused.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !count(signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !count(signed(layout.size())) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !count(signed(new_size).saturating_sub(signed(layout.size()))) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the system's.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}
