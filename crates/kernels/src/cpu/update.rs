//! Updates of whole parameters: one pass over memory, in place.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use crate::cpu::loops::{sum_of_squares as squares, vectorized};
use crate::cpu::tensor::{ELEMENTS_PER_TASK, F32, tensor};
use crate::options::AdamWUpdate;

/// Weight, first and second moment after an update; the weight overwrites its gradient.
pub(crate) fn adamw(
    weight: FlexTensor,
    state: [FlexTensor; 3],
    update: AdamWUpdate,
) -> [FlexTensor; 3] {
    let weight = F32::contiguous(weight);
    let mut state = state.map(whole);
    let [grad, first, second] = state.each_mut().map(|tensor| {
        tensor
            .storage_mut::<f32>()
            .par_chunks_mut(ELEMENTS_PER_TASK)
    });
    let chunks = weight.values().par_chunks(ELEMENTS_PER_TASK).zip(grad);
    let chunks = chunks.zip(first.zip(second));
    chunks.for_each(|((weight, grad), (first, second))| {
        update_chunk(weight, [grad, first, second], update);
    });
    state
}

vectorized! {
    fn update_chunk(weight: &[f32], state: [&mut [f32]; 3], update: AdamWUpdate) {
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

/// `start + factor·(end − start)`, in place of `start`.
pub(crate) fn lerp(start: FlexTensor, end: FlexTensor, factor: f64) -> FlexTensor {
    let (mut start, end) = (whole(start), F32::contiguous(end));
    let chunks = start.storage_mut::<f32>().par_chunks_mut(ELEMENTS_PER_TASK);
    chunks
        .zip(end.values().par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(start, end)| lerp_chunk(start, end, factor as f32));
    start
}

vectorized! {
    fn lerp_chunk(start: &mut [f32], end: &[f32], factor: f32) {
        for (start, end) in start.iter_mut().zip(end) {
            *start += (end - *start) * factor;
        }
    }
}

/// The sum of squares, in an order that does not depend on the number of threads.
pub(crate) fn sum_of_squares(values: &[f32]) -> f32 {
    let chunks = values.par_chunks(ELEMENTS_PER_TASK);
    let sums: Vec<f64> = chunks.map(|chunk| squares(chunk, 0.0)).collect();
    sums.iter().sum::<f64>() as f32
}

/// The tensor with a storage of exactly its elements, in order. Shared storage is copied when it is written.
fn whole(values: FlexTensor) -> FlexTensor {
    let shape = values.shape();
    if values.is_contiguous() && values.storage::<f32>().len() == shape.num_elements() {
        return values;
    }
    tensor(F32::contiguous(values).values().to_vec(), shape)
}
