//! The epilogue of a convolution or a linear layer: bias, residual and ReLU, applied before the sums are stored.
#![allow(
    unsafe_code,
    reason = "outputs may be uninitialised before they are written"
)]

use burn::backend::Flex;

use crate::cpu::int8::GROUP;
use crate::cpu::loops::{exact_gelu, vectorized};
use crate::cpu::tensor::F32;
use crate::options::Extras;

/// The tensors of an epilogue.
pub(crate) struct Added {
    bias: Option<F32>,
    residual: Option<F32>,
    relu: bool,
}

impl Added {
    /// Wraps tensors that are known to be f32.
    pub(crate) fn new(extras: Extras<Flex>, relu: bool) -> Self {
        let (bias, residual) = extras.split();
        Self {
            bias: bias.map(F32::contiguous),
            residual: residual.map(F32::contiguous),
            relu,
        }
    }

    pub(crate) fn epilogue(&self) -> Epilogue<'_> {
        Epilogue {
            bias: self.bias.as_ref().map(F32::values),
            residual: self.residual.as_ref().map(F32::values),
            relu: self.relu,
        }
    }
}

/// `relu(sums + bias + residual)`, where every part is optional.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// One value per output, or per output of each image.
    pub(crate) bias: Option<&'a [f32]>,
    /// One value per element of the layer's output.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) relu: bool,
}

impl Epilogue<'_> {
    /// Writes the initial values of a row of sums. The row begins with output `output`, which is element `at` of the
    /// layer's output.
    ///
    /// # Panics
    ///
    /// If bias or residual end before the row.
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

    /// Writes finished sums of one plane (an output of an image, numbered over the batch). The first is element `at` of the
    /// layer's output.
    ///
    /// # Safety
    ///
    /// `to` is valid for writing `sums.len()` values, and no other thread accesses them during the call.
    ///
    /// # Panics
    ///
    /// If the residual ends before the last sum.
    pub(crate) unsafe fn finish(&self, sums: &[f32], to: *mut f32, plane: usize, at: usize) {
        let bias = self.bias.map_or(0.0, |bias| bias[plane % bias.len()]);
        let least = match self.relu {
            true => 0.0,
            false => f32::NEG_INFINITY,
        };
        // SAFETY: guaranteed by the caller.
        unsafe {
            match self.residual {
                Some(residual) => add(sums, &residual[at..][..sums.len()], to, bias, least),
                None => shift(sums, to, bias, least),
            }
        }
    }

    /// Writes finished sums of some rows, each of the same consecutive outputs. The first is of output `output` and element `at` of
    /// the layer's output, whose rows are `line` apart.
    ///
    /// # Safety
    ///
    /// The sums' places from `to` on are valid for writing, and no other thread accesses them during the call.
    ///
    /// # Panics
    ///
    /// If bias or residual end before the last sum.
    pub(crate) unsafe fn finish_rows(
        &self,
        sums: &[f32],
        width: usize,
        [output, at, line]: [usize; 3],
        to: *mut f32,
    ) {
        let bias = match self.bias {
            Some(bias) => &bias[output..][..width],
            None => &[0.0; GROUP][..width],
        };
        // SAFETY: guaranteed by the caller.
        unsafe {
            match self.residual {
                Some(residual) => add_rows(sums, bias, &residual[at..], line, to),
                None => shift_rows(sums, bias, line, to),
            }
        }
    }

    /// Writes values times the GELU of their gates, both finished sums of the same rows. The first is of output `output` of
    /// `outputs`.
    ///
    /// # Safety
    ///
    /// Same as [`finish_rows`](Self::finish_rows).
    ///
    /// # Panics
    ///
    /// If the bias ends before the last gate.
    pub(crate) unsafe fn gate_rows(
        &self,
        [values, gates]: [&[f32]; 2],
        output: usize,
        outputs: usize,
        to: *mut f32,
    ) {
        let width = GROUP.min(outputs - output);
        let biases = match self.bias {
            Some(bias) => [output, outputs + output].map(|first| &bias[first..][..width]),
            None => [&[0.0; GROUP][..width]; 2],
        };
        // SAFETY: guaranteed by the caller.
        unsafe { gate_rows(values, gates, biases, outputs, to) };
    }
}

vectorized! {
    /// Writes `(bias + value) · gelu(bias + gate)` of each row.
    ///
    /// # Safety
    ///
    /// The places of the values are valid for writing.
    unsafe fn gate_rows(values: &[f32], gates: &[f32], biases: [&[f32]; 2], line: usize, to: *mut f32) {
        let width = biases[0].len();
        let rows = values.chunks_exact(width).zip(gates.chunks_exact(width));
        for (row, (values, gates)) in rows.enumerate() {
            let values = values.iter().zip(biases[0]).map(|(value, bias)| bias + value);
            let gates = gates.iter().zip(biases[1]).map(|(gate, bias)| bias + gate);
            for (column, (value, gate)) in values.zip(gates).enumerate() {
                // SAFETY: guaranteed by the caller.
                unsafe { to.add(row * line + column).write(value * exact_gelu(gate)) };
            }
        }
    }
}

vectorized! {
    /// Writes `bias + sum` of each row.
    ///
    /// # Safety
    ///
    /// The places of the sums are valid for writing.
    unsafe fn shift_rows(sums: &[f32], bias: &[f32], line: usize, to: *mut f32) {
        for (row, sums) in sums.chunks_exact(bias.len()).enumerate() {
            for (column, (sum, bias)) in sums.iter().zip(bias).enumerate() {
                // SAFETY: guaranteed by the caller.
                unsafe { to.add(row * line + column).write(bias + sum) };
            }
        }
    }
}

vectorized! {
    /// Writes `(bias + residual) + sum` of each row.
    ///
    /// # Safety
    ///
    /// The places of the sums are valid for writing.
    unsafe fn add_rows(sums: &[f32], bias: &[f32], residual: &[f32], line: usize, to: *mut f32) {
        for (row, sums) in sums.chunks_exact(bias.len()).enumerate() {
            let residual = &residual[row * line..][..bias.len()];
            let pairs = sums.iter().zip(bias).zip(residual);
            for (column, ((sum, bias), residual)) in pairs.enumerate() {
                // SAFETY: guaranteed by the caller.
                unsafe { to.add(row * line + column).write((bias + residual) + sum) };
            }
        }
    }
}

vectorized! {
    /// Writes `max(sum + bias, least)`.
    ///
    /// # Safety
    ///
    /// `to` is valid for writing `sums.len()` values.
    unsafe fn shift(sums: &[f32], to: *mut f32, bias: f32, least: f32) {
        for (index, sum) in sums.iter().enumerate() {
            // SAFETY: guaranteed by the caller.
            unsafe { to.add(index).write(above(sum + bias, least)) };
        }
    }
}

vectorized! {
    /// Writes `max(sum + bias + residual, least)`.
    ///
    /// # Safety
    ///
    /// `to` is valid for writing `sums.len()` values.
    unsafe fn add(sums: &[f32], residual: &[f32], to: *mut f32, bias: f32, least: f32) {
        for (index, (sum, residual)) in sums.iter().zip(residual).enumerate() {
            // SAFETY: guaranteed by the caller.
            unsafe { to.add(index).write(above(sum + bias + residual, least)) };
        }
    }
}

/// The maximum of the two; NaN stays NaN.
#[inline(always)]
fn above(value: f32, least: f32) -> f32 {
    if value < least { least } else { value }
}
