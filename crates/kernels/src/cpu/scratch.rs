//! Thread-local scratch buffers, reused between calls.

use std::cell::RefCell;

/// Number of f32 values in a cache line, and in the longest vector.
const LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as values")] [f32; LINE]);

/// A buffer aligned to a cache line, which keeps the contents of its last use.
#[derive(Default)]
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    /// The first `length` values; the buffer grows if it is shorter.
    pub(crate) fn values(&mut self, length: usize) -> &mut [f32] {
        let lines = length.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LINE]));
        }
        #[allow(unsafe_code, reason = "lines are values without gaps")]
        // SAFETY: a line is exactly sixteen values without padding, and there are enough lines.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), length)
        }
    }
}

/// Calls `work` with thread-local buffers that no caller up the stack is using.
pub(crate) fn with_scratch<const N: usize, T>(work: impl FnOnce(&mut [Scratch; N]) -> T) -> T {
    let mut own: [Scratch; N] =
        std::array::from_fn(|_| KEPT.with_borrow_mut(Vec::pop).unwrap_or_default());
    let result = work(&mut own);
    // In reverse order, so that each buffer has the same role, and thus the right size, in the next call.
    KEPT.with_borrow_mut(|kept| kept.extend(own.into_iter().rev()));
    result
}

thread_local! {
    static KEPT: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}
