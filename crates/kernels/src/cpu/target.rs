//! An output pointer shared by threads that write disjoint ranges.
#![allow(
    unsafe_code,
    reason = "threads write disjoint ranges of one array, which may be uninitialised"
)]

/// An array in which each thread writes its own ranges.
#[derive(Clone, Copy)]
pub(crate) struct Target(*mut f32);

// SAFETY: every access is unsafe, and its caller guarantees that no other thread accesses the same range.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The memory allocated by a vector, initialised or not.
    pub(crate) fn of(array: &mut Vec<f32>) -> Self {
        Self(array.as_mut_ptr())
    }

    /// The memory of a slice.
    pub(crate) fn of_slice(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// The address of an element, or of one past the end.
    pub(crate) fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }

    /// Copies values to the array.
    ///
    /// # Safety
    ///
    /// The range lies within the array, and no other thread accesses it during the call.
    pub(crate) unsafe fn write(self, index: usize, values: &[f32]) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let to = self.at(index);
            to.copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
    }

    /// [`write`](Self::write) with a length known at compile time.
    ///
    /// # Safety
    ///
    /// Same as there.
    pub(crate) unsafe fn write_line<const N: usize>(self, index: usize, values: &[f32; N]) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.at(index).cast::<[f32; N]>().write_unaligned(*values) };
    }

    /// A range of the array.
    ///
    /// # Safety
    ///
    /// The range is within the array and initialised, and nothing writes to it during the borrow.
    pub(crate) unsafe fn read<'a>(self, index: usize, length: usize) -> &'a [f32] {
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts(self.at(index), length) }
    }
}
