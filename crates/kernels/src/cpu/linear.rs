//! `x·Wᵀ` on the CPU, and its gradients: strips of the right matrix are laid side by side, turned if need be, and used for as
//! many rows as there are. Where rows are few, they are turned instead, and weights are read once and as they lie.
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

/// Columns of the product whose factors are laid out side by side: a strip of [`multiply`].
const STRIP: usize = 48;
/// Products that are summed before the next are laid out.
const INNER: usize = 512;
/// Rows at most that a strip is used for before it is laid out again.
const ROWS: usize = 512;
/// Rows at most that are few.
const FEW: usize = 128;
/// Numbers of a cache line.
const LANES: usize = 16;

/// The right matrix of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    /// `[columns, inner]`, as weights lie.
    Turned(Stored<'a>),
    /// `[inner, columns]`.
    Straight(Stored<'a>),
}

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
    Kernel::Linear.runs();
    if input.len() <= FEW * inputs {
        return of_few_rows(input, weight, inputs, epilogue);
    }
    product(input, inputs, Right::Turned(weight), epilogue)
}

/// The same by `W·xᵀ`, turned back; every bit is the same.
fn of_few_rows(
    input: &[f32],
    weight: Stored<'_>,
    inputs: usize,
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let (rows, outputs) = (input.len() / inputs, weight.len() / inputs);
    // Each line begins with a cache line.
    let line = rows.next_multiple_of(LANES);
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target::of(&mut output);
    with_scratch(|[turned]| {
        let turned = turned.numbers(inputs * line);
        let strips = turned.par_chunks_mut(STRIP * line).enumerate();
        strips.for_each(|(strip, lines)| {
            let size = [rows, lines.len() / line];
            transpose(&input[strip * STRIP..], inputs, size, lines, line);
        });
        let turned = &*turned;
        let strips = (0..outputs.div_ceil(STRIP)).into_par_iter();
        strips.for_each(|strip| {
            let first = strip * STRIP;
            let width = STRIP.min(outputs - first);
            with_scratch(|[starts, product, widened]| {
                let starts = starts.numbers(rows * width);
                let product = product.numbers(width * line);
                starts.fill(0.0);
                for (row, start) in starts.chunks_exact_mut(width).enumerate() {
                    epilogue.start(start, first, row * outputs + first);
                }
                transpose(starts, width, [rows, width], product, line);
                for from in (0..inputs).step_by(INNER) {
                    let depth = INNER.min(inputs - from);
                    let place = first * inputs + from;
                    let (weight, apart) = weight.rows(place, inputs, [width, depth], widened);
                    let left = Matrix::spaced(weight, width, depth, apart);
                    let right = Matrix::spaced(&turned[from * line..], depth, rows, line);
                    // SAFETY: the product has just these rows and more columns, and is this task's.
                    unsafe { multiply(product.as_mut_ptr(), line, left, right, true) };
                }
                transpose(product, line, [width, rows], starts, width);
                for (row, sums) in starts.chunks_exact(width).enumerate() {
                    // SAFETY: the row and the columns are of the output, and no other task has them.
                    unsafe { target.write(row * outputs + first, sums) };
                }
            });
        });
    });
    // SAFETY: so many fit, and every column of every row was written.
    unsafe { output.set_len(rows * outputs) };
    output
}

/// The gradient of the input, `dy·W` with `dy: [rows, outputs]`.
///
/// # Panics
///
/// As [`forward`].
pub(crate) fn input_grad(grad: &[f32], weight: Stored<'_>, outputs: usize) -> Vec<f32> {
    product(grad, outputs, Right::Straight(weight), Epilogue::default())
}

/// The gradient of the weight, `dyᵀ·x`.
///
/// # Panics
///
/// As [`forward`].
pub(crate) fn weight_grad(input: &[f32], grad: &[f32], rows: usize) -> Vec<f32> {
    let outputs = grad.len() / rows;
    let mut turned = vec![0.0; grad.len()];
    let lines = turned.par_chunks_mut(STRIP * rows).enumerate();
    lines.for_each(|(strip, lines)| {
        let grad = &grad[strip * STRIP..];
        transpose(grad, outputs, [rows, lines.len() / rows], lines, rows);
    });
    let right = Right::Straight(Stored::F32(input));
    product(&turned, rows, right, Epilogue::default())
}

/// `left·right` of `[rows, inner]` and a matrix of `inner` by `columns`.
fn product(left: &[f32], inner: usize, right: Right<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let (Right::Turned(values) | Right::Straight(values)) = right;
    let (rows, columns) = (left.len() / inner, values.len() / inner);
    let mut output = Vec::with_capacity(rows * columns);
    let target = Target::of(&mut output);
    let (strips, chunks) = (columns.div_ceil(STRIP), rows.div_ceil(ROWS));
    let rows_of_chunk = rows.div_ceil(chunks);
    (0..strips * chunks).into_par_iter().for_each(|task| {
        let (chunk, strip) = (task / strips, task % strips);
        let (first, row) = (strip * STRIP, chunk * rows_of_chunk);
        let width = STRIP.min(columns - first);
        let rows = row..(row + rows_of_chunk).min(rows);
        for row in rows.clone() {
            let at = row * columns + first;
            let mut start = [0.0; STRIP];
            epilogue.start(&mut start[..width], first, at);
            // SAFETY: the row and the columns are of the output, and no other task has them.
            unsafe { target.write(at, &start[..width]) };
        }
        with_scratch(|[strip, widened]| {
            let strip = strip.numbers(INNER * STRIP);
            for from in (0..inner).step_by(INNER) {
                let depth = INNER.min(inner - from);
                match right {
                    Right::Turned(values) => {
                        let place = first * inner + from;
                        let (values, apart) = values.rows(place, inner, [width, depth], widened);
                        transpose(values, apart, [width, depth], strip, STRIP);
                    }
                    Right::Straight(values) => {
                        let place = from * columns + first;
                        let (values, apart) = values.rows(place, columns, [depth, width], widened);
                        let lines = strip.chunks_exact_mut(STRIP).zip(values.chunks(apart));
                        lines.for_each(|(to, from)| to[..width].copy_from_slice(&from[..width]));
                    }
                }
                let left = &left[row * inner + from..];
                let left = Matrix::spaced(left, rows.len(), depth, inner);
                let right = Matrix::spaced(strip, depth, width, STRIP);
                // SAFETY: rows and columns are of the output, and this task's, which has just written them.
                unsafe {
                    let target = target.at(row * columns + first);
                    multiply(target, columns, left, right, true);
                }
            }
        });
    });
    // SAFETY: so many fit, and every column of every row was written.
    unsafe { output.set_len(rows * columns) };
    output
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, random, values};

    use super::*;

    #[test]
    fn few_rows_give_every_bit_that_many_do() {
        for (rows, inputs, outputs) in [(1, 5, 3), (17, 600, 50), (77, 1100, 97)] {
            let draw = |rows: usize, row: usize, seed| values(random([rows, row], seed, &device()));
            let (input, weight) = (draw(rows, inputs, 0), draw(outputs, inputs, 1));
            let (bias, residual) = (draw(1, outputs, 2), draw(rows, outputs, 3));
            let epilogues = [
                Epilogue::default(),
                Epilogue {
                    bias: Some(&bias),
                    residual: Some(&residual),
                    is_rectified: false,
                },
            ];
            for epilogue in epilogues {
                let weight = Stored::F32(&weight);
                let few = of_few_rows(&input, weight, inputs, epilogue);
                let many = product(&input, inputs, Right::Turned(weight), epilogue);
                assert!(few == many, "{rows}×{inputs}×{outputs}");
            }
        }
    }
}
