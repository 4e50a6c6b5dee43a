//! Where several threads write to at once.
#![allow(
    unsafe_code,
    reason = "threads write parts of their own to one array, which may hold nothing before that"
)]

/// An array that threads write parts of their own to.
#[derive(Clone, Copy)]
pub(crate) struct Target(*mut f32);

// SAFETY: whoever writes vouches that nobody else touches the same place.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The memory that an array has room for, whether it holds anything or not.
    pub(crate) fn of(array: &mut Vec<f32>) -> Self {
        Self(array.as_mut_ptr())
    }

    /// Numbers that are there.
    pub(crate) fn of_slice(numbers: &mut [f32]) -> Self {
        Self(numbers.as_mut_ptr())
    }

    /// The address of a number, or one beyond.
    pub(crate) fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }

    /// # Safety
    ///
    /// The numbers lie within the array, and no other thread touches them meanwhile.
    pub(crate) unsafe fn write(self, index: usize, numbers: &[f32]) {
        // SAFETY: as the caller has promised.
        unsafe {
            let to = self.at(index);
            to.copy_from_nonoverlapping(numbers.as_ptr(), numbers.len());
        }
    }

    /// The same, for a length known beforehand.
    ///
    /// # Safety
    ///
    /// The same.
    pub(crate) unsafe fn write_line<const N: usize>(self, index: usize, numbers: &[f32; N]) {
        // SAFETY: as the caller has promised.
        unsafe { self.at(index).cast::<[f32; N]>().write_unaligned(*numbers) };
    }

    /// # Safety
    ///
    /// The numbers lie within the array and are written, and nobody writes to them meanwhile.
    pub(crate) unsafe fn read<'a>(self, index: usize, length: usize) -> &'a [f32] {
        // SAFETY: as the caller has promised.
        unsafe { std::slice::from_raw_parts(self.at(index), length) }
    }
}
