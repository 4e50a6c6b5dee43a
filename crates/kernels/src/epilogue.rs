//! What follows a convolution or a linear layer, done while its sums are at hand.

use crate::flex_loops::for_this_machine;

/// What becomes of sums: a bias is added, and what goes past the layer, and negative ones become 0.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// For each output.
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

    /// Turns sums of one output, which begin with number `at` of the layer's output, into what becomes of them.
    ///
    /// # Panics
    ///
    /// If the residual ends before them.
    pub(crate) fn finish(&self, sums: &mut [f32], output: usize, at: usize) {
        let bias = self.bias.map_or(0.0, |bias| bias[output]);
        let least = match self.is_rectified {
            true => 0.0,
            false => f32::NEG_INFINITY,
        };
        match self.residual {
            Some(residual) => add(sums, &residual[at..][..sums.len()], bias, least),
            None => shift(sums, bias, least),
        }
    }
}

for_this_machine! {
    fn shift(sums: &mut [f32], bias: f32, least: f32) {
        for sum in sums {
            *sum = above(*sum + bias, least);
        }
    }
}

for_this_machine! {
    fn add(sums: &mut [f32], residual: &[f32], bias: f32, least: f32) {
        for (sum, residual) in sums.iter_mut().zip(residual) {
            *sum = above(*sum + bias + residual, least);
        }
    }
}

/// The number, or the least; NaN stays.
#[inline(always)]
fn above(number: f32, least: f32) -> f32 {
    if number < least { least } else { number }
}
