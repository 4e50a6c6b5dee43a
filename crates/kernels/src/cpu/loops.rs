//! Elementwise and reduction loops, compiled for each vector length: sums, activations, normalisation and their gradients.

use std::mem::MaybeUninit;

use crate::options::Activation;

/// The statistics used to normalise a group.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    pub(crate) mean: f32,
    pub(crate) reciprocal_deviation: f32,
}

impl Moments {
    /// Computes mean and variance in two passes, so that a large mean costs no precision.
    pub(crate) fn of(values: &[f32], epsilon: f64) -> Self {
        let len = values.len() as f64;
        let mean = (sum(values) / len) as f32;
        let variance = sum_of_squares(values, mean) / len;
        Self {
            mean,
            reciprocal_deviation: (1.0 / (variance + epsilon).sqrt()) as f32,
        }
    }
}

/// Compiles a function three times, for the default target, for AVX2 with FMA and for AVX-512, and calls the one for
/// [`vectors`](crate::cpu::vectors::vectors). Operations are neither fused nor reordered, so all three are bit-identical.
macro_rules! vectorized {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $visible fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(all(target_arch = "x86_64", not(miri)))]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                match $crate::cpu::vectors::vectors() {
                    #[allow(unsafe_code, reason = "the function is compiled for AVX-512")]
                    // SAFETY: the CPU supports it.
                    $crate::cpu::vectors::Vectors::Avx512 => return unsafe { with_avx512($($arg),*) },
                    #[allow(unsafe_code, reason = "the function is compiled for AVX2")]
                    // SAFETY: as above.
                    $crate::cpu::vectors::Vectors::Avx2 => return unsafe { with_avx2($($arg),*) },
                    $crate::cpu::vectors::Vectors::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
    ($(#[$doc:meta])* $visible:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $visible unsafe fn $name($($arg: $ty),*) {
            #[inline(always)]
            unsafe fn body($($arg: $ty),*) $body

            #[cfg(all(target_arch = "x86_64", not(miri)))]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn with_avx2($($arg: $ty),*) {
                    // SAFETY: guaranteed by the caller.
                    unsafe { body($($arg),*) }
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                unsafe fn with_avx512($($arg: $ty),*) {
                    // SAFETY: guaranteed by the caller.
                    unsafe { body($($arg),*) }
                }

                match $crate::cpu::vectors::vectors() {
                    // SAFETY: the CPU has AVX-512; the rest is guaranteed by the caller.
                    $crate::cpu::vectors::Vectors::Avx512 => return unsafe { with_avx512($($arg),*) },
                    // SAFETY: the CPU has AVX2; the rest is guaranteed by the caller.
                    $crate::cpu::vectors::Vectors::Avx2 => return unsafe { with_avx2($($arg),*) },
                    $crate::cpu::vectors::Vectors::Portable => {}
                }
            }
            // SAFETY: guaranteed by the caller.
            unsafe { body($($arg),*) }
        }
    };
}

pub(crate) use vectorized;

/// Number of partial sums in f32: two AVX-512 or four AVX2 vectors, so that additions do not wait for each other.
const LANES: usize = 32;
/// Number of elements after which the f32 lanes are added to the f64 total: 128 additions per lane, so the relative rounding
/// error of a lane stays below 1e-5.
const BLOCK: usize = 4096;

/// Computes sums that `add` accumulates in lanes, given the position and width of each step.
#[inline(always)]
fn lanewise<const N: usize>(
    len: usize,
    mut add: impl FnMut(usize, usize, &mut [[f32; LANES]; N]),
) -> [f64; N] {
    let mut totals = [0.0f64; N];
    for start in (0..len).step_by(BLOCK) {
        let end = (start + BLOCK).min(len);
        let mut lanes = [[0.0f32; LANES]; N];
        let mut at = start;
        while at < end {
            let width = LANES.min(end - at);
            add(at, width, &mut lanes);
            at += width;
        }
        for (total, lanes) in totals.iter_mut().zip(lanes) {
            *total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
    }
    totals
}

vectorized! {
    /// The sum of the values, in f64.
    pub(crate) fn sum(values: &[f32]) -> f64 {
        lanewise::<1>(values.len(), |at, width, lanes| {
            for (lane, value) in lanes[0].iter_mut().zip(&values[at..at + width]) {
                *lane += value;
            }
        })[0]
    }
}

vectorized! {
    /// The sum of squared differences from a mean, in f64.
    pub(crate) fn sum_of_squares(values: &[f32], mean: f32) -> f64 {
        lanewise::<1>(values.len(), |at, width, lanes| {
            for (lane, value) in lanes[0].iter_mut().zip(&values[at..at + width]) {
                *lane += (value - mean) * (value - mean);
            }
        })[0]
    }
}

vectorized! {
    /// `activation(scale·x + shift)`.
    pub(crate) fn apply(
        output: &mut [MaybeUninit<f32>],
        input: &[f32],
        scale: f32,
        shift: f32,
        activation: Activation,
    ) {
        assert_eq!(output.len(), input.len(), "every element is written");
        match activation {
            Activation::Identity => {
                for (output, input) in output.iter_mut().zip(input) {
                    output.write(input * scale + shift);
                }
            }
            Activation::Silu => {
                for (output, input) in output.iter_mut().zip(input) {
                    let y = input * scale + shift;
                    output.write(y * sigmoid(y));
                }
            }
        }
    }
}

vectorized! {
    /// Writes `dy`, the gradient before the activation, and returns `(Σ dy·x̂, Σ dy)`.
    pub(crate) fn grad_before_affine(
        output: &mut [f32],
        input: &[f32],
        grad: &[f32],
        moments: Moments,
        gamma: f32,
        beta: f32,
        activation: Activation,
    ) -> (f32, f32) {
        if activation == Activation::Silu {
            let scale = moments.reciprocal_deviation * gamma;
            let shift = beta - moments.mean * scale;
            for ((output, input), grad) in output.iter_mut().zip(input).zip(grad) {
                let y = input * scale + shift;
                let s = sigmoid(y);
                *output = grad * s * (1.0 + y * (1.0 - s));
            }
        } else {
            output.copy_from_slice(grad);
        }
        let [projection, total] = lanewise::<2>(input.len(), |at, width, lanes| {
            let [projection, total] = lanes;
            let values = input[at..at + width].iter().zip(&output[at..at + width]);
            for ((projection, total), (input, grad)) in projection.iter_mut().zip(total).zip(values) {
                *projection += grad * (input - moments.mean);
                *total += grad;
            }
        });
        ((projection * f64::from(moments.reciprocal_deviation)) as f32, total as f32)
    }
}

vectorized! {
    /// Replaces the `dy` in `output` by `dx`.
    pub(crate) fn grad_of_input(
        output: &mut [f32],
        input: &[f32],
        moments: Moments,
        gamma: f32,
        mean: f32,
        projection: f32,
    ) {
        let deviation = moments.reciprocal_deviation;
        for (output, input) in output.iter_mut().zip(input) {
            let normalized = (input - moments.mean) * deviation;
            *output = (gamma * *output - mean - normalized * projection) * deviation;
        }
    }
}

vectorized! {
    /// `γ·x̂ + β` of each row.
    pub(crate) fn layer_norm_rows(output: &mut [MaybeUninit<f32>], input: &[f32], gamma: &[f32], beta: &[f32], epsilon: f64) {
        assert_eq!(output.len(), input.len(), "every element is written");
        let width = gamma.len();
        for (output, input) in output.chunks_mut(width).zip(input.chunks(width)) {
            let moments = Moments::of(input, epsilon);
            for (((output, input), gamma), beta) in output.iter_mut().zip(input).zip(gamma).zip(beta) {
                output.write((input - moments.mean) * moments.reciprocal_deviation * gamma + beta);
            }
        }
    }
}

vectorized! {
    /// Writes the gradient of the rows and adds to the gradients of the parameters, gamma's and beta's.
    pub(crate) fn layer_norm_rows_grad(
        output: &mut [f32],
        input: &[f32],
        grad: &[f32],
        gamma: &[f32],
        epsilon: f64,
        parameters: [&mut [f32]; 2],
    ) {
        let [gamma_grad, beta_grad] = parameters;
        let width = gamma.len();
        let rows = output.chunks_mut(width).zip(input.chunks(width)).zip(grad.chunks(width));
        for ((output, input), grad) in rows {
            let moments = Moments::of(input, epsilon);
            let deviation = moments.reciprocal_deviation;
            for (((grad, input), gamma), beta) in grad.iter().zip(input).zip(&mut *gamma_grad).zip(&mut *beta_grad) {
                *gamma += grad * (input - moments.mean) * deviation;
                *beta += grad;
            }
            let [mean, projection] = lanewise::<2>(width, |at, len, lanes| {
                let [mean, projection] = lanes;
                let values = grad[at..at + len].iter().zip(&gamma[at..at + len]).zip(&input[at..at + len]);
                for ((mean, projection), ((grad, gamma), input)) in mean.iter_mut().zip(projection).zip(values) {
                    *mean += grad * gamma;
                    *projection += grad * gamma * (input - moments.mean);
                }
            });
            let mean = (mean / width as f64) as f32;
            let projection = (projection * f64::from(deviation) / width as f64) as f32;
            for (((output, grad), gamma), input) in output.iter_mut().zip(grad).zip(gamma).zip(input) {
                let normalized = (input - moments.mean) * deviation;
                *output = (grad * gamma - mean - normalized * projection) * deviation;
            }
        }
    }
}

vectorized! {
    /// The softmax of a row.
    pub(crate) fn softmax(output: &mut [MaybeUninit<f32>], input: &[f32]) {
        assert_eq!(output.len(), input.len(), "every element is written");
        let (chunks, rest) = input.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, x| max.max(*x));
        let mut sums = [0.0f32; LANES];
        for (output, input) in output.chunks_mut(LANES).zip(input.chunks(LANES)) {
            for ((sum, output), x) in sums.iter_mut().zip(output).zip(input) {
                *sum += *output.write(exp(x - largest));
            }
        }
        let reciprocal = 1.0 / sums.iter().sum::<f32>();
        for output in output {
            #[allow(unsafe_code, reason = "elements are read after they are written")]
            // SAFETY: the loop above wrote every element.
            let weight = unsafe { output.assume_init_mut() };
            *weight *= reciprocal;
        }
    }
}

vectorized! {
    /// `x·Φ(x)`
    pub(crate) fn gelu_values(output: &mut [MaybeUninit<f32>], input: &[f32]) {
        assert_eq!(output.len(), input.len(), "every element is written");
        for (output, &x) in output.iter_mut().zip(input) {
            output.write(x * normal_cdf(x, exp(-0.5 * x * x)));
        }
    }
}

vectorized! {
    /// `values·gelu(gates)`
    pub(crate) fn gated_gelu_values(output: &mut [MaybeUninit<f32>], values: &[f32], gates: &[f32]) {
        assert_eq!([output.len(); 2], [values.len(), gates.len()], "every element is written");
        for ((output, value), &x) in output.iter_mut().zip(values).zip(gates) {
            output.write(value * exact_gelu(x));
        }
    }
}

/// `x·Φ(x)`
#[inline(always)]
pub(crate) fn exact_gelu(x: f32) -> f32 {
    x * normal_cdf(x, exp(-0.5 * x * x))
}

vectorized! {
    /// `dy·(Φ(x) + x·φ(x))`
    pub(crate) fn gelu_grads(output: &mut [MaybeUninit<f32>], input: &[f32], grad: &[f32]) {
        assert_eq!([output.len(); 2], [input.len(), grad.len()], "every element is written");
        for ((output, &x), grad) in output.iter_mut().zip(input).zip(grad) {
            let bell = exp(-0.5 * x * x);
            output.write(grad * (normal_cdf(x, bell) + x * bell * 0.398_942_3));
        }
    }
}

/// Φ(x) given exp(−x²/2), within 1e-7: Abramowitz and Stegun, 7.1.26, for the error function of x/√2.
#[inline(always)]
fn normal_cdf(x: f32, bell: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    let p = 1.061_405_4 * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * bell;
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// σ(x)
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// eˣ without branches or calls, so that loops over it vectorise; within 2 units in the last place for −87.3 ≤ x ≤ 88.3, and
/// clamped beyond.
///
/// x = n·ln 2 + r with n an integer; the polynomial for eʳ is from Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    f32::from_bits(p.to_bits().wrapping_add(exponent))
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -86_000..88_000 {
            let x = i as f32 * 1e-3;
            let (found, expected) = (super::exp(x), f64::from(x).exp() as f32);
            assert!(
                (found - expected).abs() <= 2.5e-7 * expected,
                "exp({x}) = {found}, not {expected}"
            );
        }
        assert!(super::exp(-1e30) < 1.3e-38 && super::exp(1e30).is_finite());
    }
}
