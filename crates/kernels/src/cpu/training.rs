//! Updates of whole parameters on the CPU: one pass over memory, which is that of what is no longer needed.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use crate::cpu::loops::{for_this_machine, sum_of_squares as squares};
use crate::cpu::{Contiguous, ELEMENTS_PER_TASK as SHARE, tensor};
use crate::training::AdamWUpdate;

/// Weight, first and second moment after an update; the weight in the memory of its gradient.
pub(crate) fn adamw(
    weight: FlexTensor,
    state: [FlexTensor; 3],
    update: AdamWUpdate,
) -> [FlexTensor; 3] {
    let weight = Contiguous::new(weight);
    let mut state = state.map(whole);
    let [grad, first, second] = state
        .each_mut()
        .map(|tensor| tensor.storage_mut::<f32>().par_chunks_mut(SHARE));
    let shares = weight.values().par_chunks(SHARE).zip(grad);
    let shares = shares.zip(first.zip(second));
    shares.for_each(|((weight, grad), (first, second))| {
        update_share(weight, [grad, first, second], update);
    });
    state
}

for_this_machine! {
    fn update_share(weight: &[f32], state: [&mut [f32]; 3], update: AdamWUpdate) {
        let count = weight.len();
        let [grads, firsts, seconds] = state.map(|values| &mut values[..count]);
        let AdamWUpdate { grad_factor, beta1, beta2, weight_factor, rate, deviation_correction, epsilon } = update;
        let [of_grad, of_weight, rate] = [grad_factor, weight_factor, rate].map(|x| x as f32);
        let [kept1, new1, kept2, new2] = [beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(|x| x as f32);
        let [of_root, epsilon] = [1.0 / deviation_correction, epsilon].map(|x| x as f32);
        for at in 0..count {
            let grad = grads[at] * of_grad;
            let first = firsts[at] * kept1 + grad * new1;
            let second = seconds[at] * kept2 + grad * grad * new2;
            firsts[at] = first;
            seconds[at] = second;
            grads[at] = weight[at] * of_weight - first / (second.sqrt() * of_root + epsilon) * rate;
        }
    }
}

/// `from + share·(to − from)`, in the memory of `from`.
pub(crate) fn moved_towards(from: FlexTensor, to: FlexTensor, share: f64) -> FlexTensor {
    let (mut from, to) = (whole(from), Contiguous::new(to));
    let shares = from.storage_mut::<f32>().par_chunks_mut(SHARE);
    shares
        .zip(to.values().par_chunks(SHARE))
        .for_each(|(from, to)| move_share(from, to, share as f32));
    from
}

for_this_machine! {
    fn move_share(from: &mut [f32], to: &[f32], share: f32) {
        for (from, to) in from.iter_mut().zip(to) {
            *from += (to - *from) * share;
        }
    }
}

/// The sum of squares, whose order does not depend on the number of threads.
pub(crate) fn sum_of_squares(values: &[f32]) -> f32 {
    let shares = values.par_chunks(SHARE).map(|share| squares(share, 0.0));
    let sums: Vec<f64> = shares.collect();
    sums.iter().sum::<f64>() as f32
}

/// The same numbers in memory that holds nothing else; what others hold too is copied when it is written to.
fn whole(values: FlexTensor) -> FlexTensor {
    let shape = values.shape();
    if values.is_contiguous() && values.storage::<f32>().len() == shape.num_elements() {
        return values;
    }
    tensor(Contiguous::new(values).values().to_vec(), shape)
}
