//! Updates of whole parameters on the CPU, each in one pass over memory.
#![allow(
    unsafe_code,
    reason = "memory that is written before it is read, and not cleared before that"
)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::cpu::ELEMENTS_PER_TASK as SHARE;
use crate::cpu::loops::{for_this_machine, sum_of_squares as squares};
use crate::training::AdamWUpdate;

/// Weight, first and second moment after an update.
///
/// # Panics
///
/// If the slices differ in length.
pub(crate) fn adamw(
    [weight, grad, first, second]: [&[f32]; 4],
    update: AdamWUpdate,
) -> [Vec<f32>; 3] {
    let count = weight.len();
    let mut outputs = [const { Vec::new() }; 3].map(|_: Vec<f32>| Vec::with_capacity(count));
    let [w, m, v] = outputs
        .each_mut()
        .map(|output| output.spare_capacity_mut()[..count].par_chunks_mut(SHARE));
    let inputs = weight.par_chunks(SHARE).zip(grad.par_chunks(SHARE));
    let moments = first.par_chunks(SHARE).zip(second.par_chunks(SHARE));
    let shares = w.zip(m).zip(v).zip(inputs).zip(moments);
    shares.for_each(|((((w, m), v), (weight, grad)), (first, second))| {
        update_share([w, m, v], [weight, grad, first, second], update);
    });
    // SAFETY: shares are all of the elements, and each was written.
    outputs
        .iter_mut()
        .for_each(|output| unsafe { output.set_len(count) });
    outputs
}

for_this_machine! {
    fn update_share(outputs: [&mut [MaybeUninit<f32>]; 3], inputs: [&[f32]; 4], update: AdamWUpdate) {
        let count = inputs[0].len();
        let [w, m, v] = outputs.map(|output| &mut output[..count]);
        let [weight, grad, first, second] = inputs.map(|input| &input[..count]);
        let AdamWUpdate { grad_factor, beta1, beta2, weight_factor, rate, deviation_correction, epsilon } = update;
        let [of_grad, of_weight, rate] = [grad_factor, weight_factor, rate].map(|x| x as f32);
        let [kept1, new1, kept2, new2] = [beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(|x| x as f32);
        let [of_root, epsilon] = [1.0 / deviation_correction, epsilon].map(|x| x as f32);
        for at in 0..count {
            let grad = grad[at] * of_grad;
            let first = first[at] * kept1 + grad * new1;
            let second = second[at] * kept2 + grad * grad * new2;
            m[at].write(first);
            v[at].write(second);
            w[at].write(weight[at] * of_weight - first / (second.sqrt() * of_root + epsilon) * rate);
        }
    }
}

/// `from + share·(to − from)`
///
/// # Panics
///
/// If the slices differ in length.
pub(crate) fn moved_towards(from: &[f32], to: &[f32], share: f64) -> Vec<f32> {
    let count = from.len();
    let mut output = Vec::with_capacity(count);
    let places = output.spare_capacity_mut()[..count].par_chunks_mut(SHARE);
    let inputs = from.par_chunks(SHARE).zip(to.par_chunks(SHARE));
    places.zip(inputs).for_each(|(output, (from, to))| {
        move_share(output, from, to, share as f32);
    });
    // SAFETY: shares are all of the elements, and each was written.
    unsafe { output.set_len(count) };
    output
}

for_this_machine! {
    fn move_share(output: &mut [MaybeUninit<f32>], from: &[f32], to: &[f32], share: f32) {
        assert_eq!([output.len(), to.len()], [from.len(); 2], "every element is written");
        for ((output, from), to) in output.iter_mut().zip(from).zip(to) {
            output.write(from + (to - from) * share);
        }
    }
}

/// The sum of squares, whose order does not depend on the number of threads.
pub(crate) fn sum_of_squares(values: &[f32]) -> f32 {
    let shares = values.par_chunks(SHARE).map(|share| squares(share, 0.0));
    let sums: Vec<f64> = shares.collect();
    sums.iter().sum::<f64>() as f32
}
