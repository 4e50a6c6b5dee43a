//! `x·Wᵀ` on the CPU: strips of the weight are turned, so that its outputs lie side by side, and used for as many rows as
//! there are.
#![allow(
    unsafe_code,
    reason = "threads write columns of their own into one output"
)]

use rayon::prelude::*;

use crate::cpu::epilogue::Epilogue;
use crate::cpu::multiply::multiply;
use crate::cpu::product::Matrix;
use crate::cpu::ran::Kernel;
use crate::cpu::scratch::with_scratch;
use crate::cpu::stored::Stored;
use crate::cpu::target::Target;
use crate::cpu::transpose::transpose;

/// Outputs whose weights are laid out side by side: a strip of [`multiply`].
const STRIP: usize = 48;
/// Features that are summed before the next are laid out.
const INNER: usize = 512;
/// Rows at most that a strip of weights is used for before it is laid out again.
const ROWS: usize = 512;

/// `[rows, inputs]` with weights `[outputs, inputs]` → `[rows, outputs]`.
///
/// # Panics
///
/// If there are no rows, inputs or outputs.
pub(crate) fn forward(
    input: &[f32],
    weight: Stored<'_>,
    inputs: usize,
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let (rows, outputs) = (input.len() / inputs, weight.len() / inputs);
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target::of(&mut output);
    Kernel::Linear.runs();
    let (strips, chunks) = (outputs.div_ceil(STRIP), rows.div_ceil(ROWS));
    let rows_of_chunk = rows.div_ceil(chunks);
    (0..strips * chunks).into_par_iter().for_each(|task| {
        let (chunk, strip) = (task / strips, task % strips);
        let (first, row) = (strip * STRIP, chunk * rows_of_chunk);
        let columns = STRIP.min(outputs - first);
        let rows = row..(row + rows_of_chunk).min(rows);
        for row in rows.clone() {
            let at = row * outputs + first;
            let mut start = [0.0; STRIP];
            epilogue.start(&mut start[..columns], first, at);
            // SAFETY: the row and the columns are of the output, and no other task has them.
            unsafe { target.write(at, &start[..columns]) };
        }
        with_scratch(|[strip, widened]| {
            let strip = strip.numbers(INNER * STRIP);
            for from in (0..inputs).step_by(INNER) {
                let inner = INNER.min(inputs - from);
                let place = first * inputs + from;
                let (weight, apart) = weight.rows(place, inputs, [columns, inner], widened);
                transpose(weight, apart, [columns, inner], strip, STRIP);
                let left = &input[row * inputs + from..];
                let left = Matrix::spaced(left, rows.len(), inner, inputs);
                let right = Matrix::spaced(strip, inner, columns, STRIP);
                // SAFETY: rows and columns are of the output, and this task's, which has just written them.
                unsafe {
                    let target = target.at(row * outputs + first);
                    multiply(target, outputs, left, right, true);
                }
            }
        });
    });
    // SAFETY: so many fit, and every column of every row was written.
    unsafe { output.set_len(rows * outputs) };
    output
}
