//! Memory to work in, which each thread keeps from one call to the next.

use std::cell::RefCell;

/// As many numbers as a cache line and the longest vectors hold.
const LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as numbers")] [f32; LINE]);

/// Numbers that begin with a cache line, and are whatever the last use has left.
#[derive(Default)]
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    /// The first `length`; more memory is taken if there are not so many.
    pub(crate) fn numbers(&mut self, length: usize) -> &mut [f32] {
        let lines = length.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LINE]));
        }
        #[allow(unsafe_code, reason = "lines are numbers without gaps")]
        // SAFETY: a line is sixteen numbers, as long as it is aligned, and there are enough of them.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), length)
        }
    }
}

/// Gives the work memory of this thread's own, other than what work around it has.
pub(crate) fn with_scratch<const N: usize, T>(work: impl FnOnce(&mut [Scratch; N]) -> T) -> T {
    let mut own: [Scratch; N] =
        std::array::from_fn(|_| KEPT.with_borrow_mut(Vec::pop).unwrap_or_default());
    let result = work(&mut own);
    // The last first, so that next time each is what it was.
    KEPT.with_borrow_mut(|kept| kept.extend(own.into_iter().rev()));
    result
}

thread_local! {
    static KEPT: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}
