//! `x·Wᵀ` and its gradients, with two algorithms depending on the number of rows:
//!
//! ```text
//!  many rows: product                          few rows (≤ FEW): product_of_few_rows
//!
//!            columns = outputs                         x (rows × inputs), packed once:
//!            ┌────┬────┬────┬──┐ strip: STRIP          xᵀ with lines of whole cache lines
//!   W packed │    │    │    │  │ columns, packed               ┌─────────┐
//!   into     │    │    │    │  │ INNER deep                    │ rows    │ inputs
//!   strips   └────┴────┴────┴──┘                               └─────────┘
//!  ┌───────┐ ┌────┬────┬────┬──┐
//!  │ x,    │ │task│    │    │  │ chunk of            ┌───────┐ ┌─────────┐
//!  │ read  │ ├────┼────┼────┼──┤ up to ROWS rows     │W, read│ │ strip:  │ STRIP outputs,
//!  │ as is │ │    │    │    │  │                     │ once, │ ├─────────┤ transposed into
//!  └───────┘ └────┴────┴────┴──┘                     │ as is │ │  task   │ the output
//! ```
//!
//! Both give bit-identical results, because each sum runs over the inputs in order.
#![allow(unsafe_code, reason = "threads write disjoint columns of one output")]

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::cpu::counters::Kernel;
use crate::cpu::epilogue::{Added, Epilogue};
use crate::cpu::multiply::multiply;
use crate::cpu::product::Matrix;
use crate::cpu::scratch::with_scratch;
use crate::cpu::stored::{Stored, Weight};
use crate::cpu::target::Target;
use crate::cpu::tensor::{F32, tensor, written_in_chunks};
use crate::cpu::transpose::{transpose, transpose_into};

/// Columns of a packed strip: three AVX-512 or six AVX2 vectors, whole tiles of [`multiply`] at either length. INNER × STRIP
/// values are 96 KiB, which leaves most of an L2 cache of 512 KiB or more to the rows that stream through.
const STRIP: usize = 48;
/// Depth of a packed strip: number of products summed before the next values are packed.
const INNER: usize = 512;
/// Maximum number of rows per packing of a strip. With two threads and 4096 rows (64×64 latents) there are eight chunks per
/// strip, enough to balance the load.
const ROWS: usize = 512;
/// Number of rows up to which transposing the input beats packing the weight. For the 77 tokens of a text encoder it takes
/// 0.130 s instead of 0.146 s, and 0.117 s with tiles of five vectors (docs/log.md, 2026-11-25).
const FEW: usize = 128;
/// f32 values in a cache line.
const LANES: usize = 16;

/// The right matrix of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    /// `[columns, inner]`, as weights are stored.
    Transposed(Stored<'a>),
    /// `[inner, columns]`.
    Straight(Stored<'a>),
}

/// `[rows, inputs]` with weights `[outputs, inputs]` → `[rows, outputs]`.
pub(crate) fn forward(input: &F32, weight: &Weight, added: &Added) -> FlexTensor {
    Kernel::Linear.count();
    let ([rows, inputs], [outputs, _]) = (input.shape().dims(), weight.shape().dims());
    let (input, weight, epilogue) = (input.values(), weight.stored(), added.epilogue());
    let values = match rows <= FEW {
        true => product_of_few_rows(input, weight, inputs, epilogue),
        false => product(input, inputs, Right::Transposed(weight), epilogue),
    };
    tensor(values, Shape::new([rows, outputs]))
}

/// The gradient of the input, `dy·W` with `dy: [rows, outputs]`.
pub(crate) fn input_grad(grad: &F32, weight: &Weight) -> FlexTensor {
    let ([rows, outputs], [_, inputs]) = (grad.shape().dims(), weight.shape().dims());
    let right = Right::Straight(weight.stored());
    let values = product(grad.values(), outputs, right, Epilogue::default());
    tensor(values, Shape::new([rows, inputs]))
}

/// The gradient of the weight, `dyᵀ·x`.
pub(crate) fn weight_grad(input: &F32, grad: &F32) -> FlexTensor {
    let ([rows, inputs], [_, outputs]) = (input.shape().dims(), grad.shape().dims());
    let grad = grad.values();
    // SAFETY: transposing writes every line of a strip completely.
    let transposed = unsafe {
        written_in_chunks(grad.len(), STRIP * rows, |strip, lines| {
            let grad = &grad[strip * STRIP..];
            let size = [rows, lines.len() / rows];
            transpose_into(grad, outputs, size, lines, rows);
        })
    };
    let right = Right::Straight(Stored::F32(input.values()));
    let values = product(&transposed, rows, right, Epilogue::default());
    tensor(values, Shape::new([outputs, inputs]))
}

/// `x·Wᵀ` as the transpose of `W·xᵀ`, which reads the weights once, in storage order.
fn product_of_few_rows(
    input: &[f32],
    weight: Stored<'_>,
    inputs: usize,
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let (rows, outputs) = (input.len() / inputs, weight.len() / inputs);
    // Each line is aligned to a cache line.
    let line = rows.next_multiple_of(LANES);
    let mut output = Vec::with_capacity(rows * outputs);
    let target = Target::of(&mut output);
    with_scratch(|[transposed]| {
        let transposed = transposed.values(inputs * line);
        let strips = transposed.par_chunks_mut(STRIP * line).enumerate();
        strips.for_each(|(strip, lines)| {
            let size = [rows, lines.len() / line];
            transpose(&input[strip * STRIP..], inputs, size, lines, line);
        });
        let few = FewRows {
            transposed,
            rows,
            line,
            weight,
            inputs,
            outputs,
            epilogue,
        };
        let strips = (0..outputs.div_ceil(STRIP)).into_par_iter();
        // SAFETY: each strip is written by one task.
        strips.for_each(|strip| unsafe { few.strip(strip * STRIP, target) });
    });
    // SAFETY: the capacity suffices, and every column of every row was written.
    unsafe { output.set_len(rows * outputs) };
    output
}

/// A product whose left matrix has few rows.
struct FewRows<'a> {
    /// The left matrix, transposed, in lines of `line` values.
    transposed: &'a [f32],
    rows: usize,
    line: usize,
    weight: Stored<'a>,
    inputs: usize,
    outputs: usize,
    epilogue: Epilogue<'a>,
}

impl FewRows<'_> {
    /// Writes a strip of the output, from column `first` on.
    ///
    /// # Safety
    ///
    /// The target is the output, and no other thread accesses these columns during the call.
    unsafe fn strip(&self, first: usize, target: Target) {
        let Self {
            rows,
            line,
            inputs,
            outputs,
            ..
        } = *self;
        let width = STRIP.min(outputs - first);
        with_scratch(|[starts, product, widened]| {
            let starts = starts.values(rows * width);
            let product = product.values(width * line);
            starts.fill(0.0);
            for (row, start) in starts.chunks_exact_mut(width).enumerate() {
                let epilogue = self.epilogue;
                epilogue.start(start, first, row * outputs + first);
            }
            transpose(starts, width, [rows, width], product, line);
            for from in (0..inputs).step_by(INNER) {
                let depth = INNER.min(inputs - from);
                let place = first * inputs + from;
                let (weight, apart) = self.weight.rows(place, inputs, [width, depth], widened);
                let left = Matrix::strided(weight, width, depth, apart);
                let right = Matrix::strided(&self.transposed[from * line..], depth, rows, line);
                // SAFETY: the product has exactly these rows and more columns, and belongs to this task.
                unsafe { multiply(product.as_mut_ptr(), line, left, right, true) };
            }
            transpose(product, line, [width, rows], starts, width);
            for (row, sums) in starts.chunks_exact(width).enumerate() {
                // SAFETY: row and columns are of the output; the rest is guaranteed by the caller.
                unsafe { target.write(row * outputs + first, sums) };
            }
        });
    }
}

/// `left·right` for `[rows, inner]` and a matrix of `inner` by `columns`.
fn product(left: &[f32], inner: usize, right: Right<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
    let (Right::Transposed(values) | Right::Straight(values)) = right;
    let (rows, columns) = (left.len() / inner, values.len() / inner);
    let mut output = Vec::with_capacity(rows * columns);
    let product = Product {
        left,
        inner,
        right,
        columns,
        epilogue,
        output: Target::of(&mut output),
    };
    let (strips, chunks) = (columns.div_ceil(STRIP), rows.div_ceil(ROWS));
    let rows_per_chunk = rows.div_ceil(chunks);
    (0..strips * chunks).into_par_iter().for_each(|task| {
        let (chunk, strip) = (task / strips, task % strips);
        let row = chunk * rows_per_chunk;
        let rows = row..(row + rows_per_chunk).min(rows);
        // SAFETY: each chunk of each strip is written by one task.
        unsafe { product.task(rows, strip * STRIP) };
    });
    // SAFETY: the capacity suffices, and every column of every row was written.
    unsafe { output.set_len(rows * columns) };
    output
}

/// A product whose right matrix is packed one strip at a time.
struct Product<'a> {
    left: &'a [f32],
    inner: usize,
    right: Right<'a>,
    columns: usize,
    epilogue: Epilogue<'a>,
    output: Target,
}

impl Product<'_> {
    /// Writes some rows of a strip, from column `first` on.
    ///
    /// # Safety
    ///
    /// No other thread accesses them during the call.
    unsafe fn task(&self, rows: std::ops::Range<usize>, first: usize) {
        let (inner, columns) = (self.inner, self.columns);
        let width = STRIP.min(columns - first);
        for row in rows.clone() {
            let at = row * columns + first;
            let mut start = [0.0; STRIP];
            self.epilogue.start(&mut start[..width], first, at);
            // SAFETY: row and columns are of the output; the rest is guaranteed by the caller.
            unsafe { self.output.write(at, &start[..width]) };
        }
        with_scratch(|[strip, widened]| {
            let strip = strip.values(INNER * STRIP);
            for from in (0..inner).step_by(INNER) {
                let depth = INNER.min(inner - from);
                self.pack(from, first, [depth, width], strip, widened);
                let left = &self.left[rows.start * inner + from..];
                let left = Matrix::strided(left, rows.len(), depth, inner);
                let right = Matrix::strided(strip, depth, width, STRIP);
                // SAFETY: as above, and the rows have just been written.
                unsafe {
                    let target = self.output.at(rows.start * columns + first);
                    multiply(target, columns, left, right, true);
                }
            }
        });
    }

    /// Packs `depth` rows and `width` columns of the right matrix into lines of STRIP values.
    fn pack(
        &self,
        from: usize,
        first: usize,
        [depth, width]: [usize; 2],
        strip: &mut [f32],
        widened: &mut crate::cpu::scratch::Scratch,
    ) {
        match self.right {
            Right::Transposed(values) => {
                let place = first * self.inner + from;
                let (values, apart) = values.rows(place, self.inner, [width, depth], widened);
                transpose(values, apart, [width, depth], strip, STRIP);
            }
            Right::Straight(values) => {
                let place = from * self.columns + first;
                let (values, apart) = values.rows(place, self.columns, [depth, width], widened);
                let lines = strip.chunks_exact_mut(STRIP).zip(values.chunks(apart));
                lines.for_each(|(to, from)| to[..width].copy_from_slice(&from[..width]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, random, values};
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn few_rows_are_bit_identical_to_many() {
        for (rows, inputs, outputs) in [(1, 5, 3), (17, 600, 50), (77, 1100, 97)] {
            let draw = |rows: usize, row: usize, seed| values(random([rows, row], seed, &device()));
            let (input, weight) = (draw(rows, inputs, 0), draw(outputs, inputs, 1));
            let (bias, residual) = (draw(1, outputs, 2), draw(rows, outputs, 3));
            let epilogues = [
                Epilogue::default(),
                Epilogue {
                    bias: Some(&bias),
                    residual: Some(&residual),
                    relu: false,
                },
            ];
            for epilogue in epilogues {
                let weight = Stored::F32(&weight);
                let few = product_of_few_rows(&input, weight, inputs, epilogue);
                let many = product(&input, inputs, Right::Transposed(weight), epilogue);
                assert!(few == many, "{rows}×{inputs}×{outputs}");
            }
        }
    }
}
