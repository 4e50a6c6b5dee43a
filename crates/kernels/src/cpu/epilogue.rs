//! What follows a convolution or a linear layer, done while its sums are at hand.
#![allow(unsafe_code, reason = "what is written may hold nothing before that")]

use crate::cpu::loops::for_this_machine;

/// What becomes of sums: a bias is added, and what goes past the layer, and negative ones become 0.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// For each output, or for each output of each image.
    pub(crate) bias: Option<&'a [f32]>,
    /// For each number of the layer's output.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) is_rectified: bool,
}

impl Epilogue<'_> {
    /// What sums of a row begin with, from an output on, of which the first is number `at` of the layer's output.
    ///
    /// # Panics
    ///
    /// If bias or residual end before them.
    pub(crate) fn start(&self, sums: &mut [f32], output: usize, at: usize) {
        let width = sums.len();
        if let Some(bias) = self.bias {
            sums.copy_from_slice(&bias[output..][..width]);
        }
        if let Some(residual) = self.residual {
            let residual = &residual[at..][..width];
            sums.iter_mut().zip(residual).for_each(|(sum, x)| *sum += x);
        }
    }

    /// Writes what becomes of sums of one output of one image, the planes being counted over the batch, which begin with
    /// number `at` of the layer's output.
    ///
    /// # Safety
    ///
    /// As many places can be written, and no other thread touches them meanwhile.
    ///
    /// # Panics
    ///
    /// If the residual ends before them.
    pub(crate) unsafe fn finish(&self, sums: &[f32], to: *mut f32, plane: usize, at: usize) {
        let bias = self.bias.map_or(0.0, |bias| bias[plane % bias.len()]);
        let least = match self.is_rectified {
            true => 0.0,
            false => f32::NEG_INFINITY,
        };
        match self.residual {
            Some(residual) => add(sums, &residual[at..][..sums.len()], to, bias, least),
            None => shift(sums, to, bias, least),
        }
    }
}

for_this_machine! {
    fn shift(sums: &[f32], to: *mut f32, bias: f32, least: f32) {
        for (index, sum) in sums.iter().enumerate() {
            // SAFETY: as the caller of `finish` has promised.
            unsafe { to.add(index).write(above(sum + bias, least)) };
        }
    }
}

for_this_machine! {
    fn add(sums: &[f32], residual: &[f32], to: *mut f32, bias: f32, least: f32) {
        for (index, (sum, residual)) in sums.iter().zip(residual).enumerate() {
            // SAFETY: as above.
            unsafe { to.add(index).write(above(sum + bias + residual, least)) };
        }
    }
}

/// The number, or the least; NaN stays.
#[inline(always)]
fn above(number: f32, least: f32) -> f32 {
    if number < least { least } else { number }
}
