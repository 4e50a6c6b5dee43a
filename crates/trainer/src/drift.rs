//! The loss of preference tuning: a drift towards preferred samples and away from rejected ones.

use burn::tensor::{Tensor, TensorData};

/// Temperatures of the affinities, in units of the mean distance.
const TEMPERATURES: [f64; 3] = [0.02, 0.05, 0.2];
/// Logit that keeps a sample from itself, before the temperature.
const MASK: f64 = 100.0;
/// Smallest product of two affinities; without it, samples far from all others would not move.
const LEAST: f64 = 1e-6;
/// Smallest unit of distance.
const LEAST_SCALE: f64 = 1e-3;
/// Smallest mean square of a field; samples that coincide with their targets have none.
const LEAST_SQUARE: f64 = 1e-12;

/// Samples that features drift towards and away from.
#[derive(Clone, Debug)]
pub struct DriftTargets {
    /// Preferred samples, `[n, width]`, without autodiff.
    pub positives: Tensor<2>,
    /// Rejected samples, `[n, width]`, without autodiff. The student's own samples also repel each other.
    pub negatives: Option<Tensor<2>>,
    /// Weight of either, relative to the student's own samples.
    pub weight: f64,
}

/// Loss whose gradient moves each sample towards preferred ones and away from rejected ones, both weighted by affinity
/// in feature space (DrPO). It needs no gradient of the reward that ranked them.
///
/// With the field F of [`drift_field`]: `mean((f/u − sg(f/u + F))²)`, so the gradient is −2F/u over the number of
/// elements.
///
/// # Shapes
///
/// - features: `[samples, width]`, on the student's graph
/// - returns: `[1]`
///
/// # Panics
///
/// If the widths differ.
#[track_caller]
pub fn drift_loss(features: Tensor<2>, targets: &DriftTargets) -> Tensor<1> {
    let own = features.clone().inner();
    let (field, unit) = drift_field(own.clone(), targets);
    let goal = own / unit.clone() + field;
    (features / unit.autodiff() - goal.autodiff())
        .powi_scalar(2)
        .mean()
}

/// The direction in which each sample drifts, in units of the typical difference of a feature, and that unit.
///
/// # Shapes
///
/// - own: `[samples, width]`, without autodiff
/// - returns: `[samples, width]`, `[1, 1]`
///
/// # Panics
///
/// If the widths differ.
#[track_caller]
pub fn drift_field(own: Tensor<2>, targets: &DriftTargets) -> (Tensor<2>, Tensor<2>) {
    let ([n_own, width], device) = (own.dims(), own.device());
    let [n_positive, _] = targets.positives.dims();
    let mut all = vec![own.clone()];
    all.extend(targets.negatives.clone());
    all.push(targets.positives.clone());
    let all = Tensor::cat(all, 0);
    let [n_all, _] = all.dims();

    let row = |values: Vec<f32>| {
        let len = values.len();
        Tensor::<2>::from_data(TensorData::new(values, [1, len]), &device)
    };
    let weight = |target| match target < n_own {
        true => 1.0,
        false => targets.weight as f32,
    };
    let weights: Vec<f32> = (0..n_all).map(weight).collect();
    let mean_weight = weights.iter().sum::<f32>() / n_all as f32;
    let weights = row(weights);
    let is_positive = |target| f32::from(u8::from(target >= n_all - n_positive));
    let is_positive = row((0..n_all).map(is_positive).collect());

    // [own, all, width]: differences, whose squares would cancel if they were expanded.
    let difference = all.unsqueeze_dim::<3>(0) - own.clone().unsqueeze_dim::<3>(1);
    let distance = difference.clone().powi_scalar(2).sum_dim(2).sqrt();
    let distance = distance.squeeze_dim::<2>(2);
    let scale = (distance.clone() * weights.clone()).mean() / mean_weight;
    let scale = scale.clamp_min(LEAST_SCALE).reshape([1, 1]);
    let unit = scale.clone() / (width as f64).sqrt();
    let unit = unit.clamp_min(LEAST_SCALE);

    let itself = Tensor::cat(
        vec![
            Tensor::<2>::eye(n_own, &device),
            Tensor::zeros([n_own, n_all - n_own], &device),
        ],
        1,
    );
    let mut field = own.zeros_like();
    for temperature in TEMPERATURES {
        let logits = distance.clone() / (scale.clone() * temperature);
        let logits = logits.neg() - itself.clone() * (MASK / temperature);
        let affinity = softmax(logits.clone(), 1) * softmax(logits, 0);
        let affinity = affinity.clamp_min(LEAST).sqrt() * weights.clone();
        let towards = affinity.clone() * is_positive.clone();
        let away = affinity - towards.clone();
        // Pulls and pushes balance: each is weighted by the sum of the others.
        let (pull, push) = (away.clone().sum_dim(1), towards.clone().sum_dim(1));
        let factor = towards * pull - away * push;
        let part = (factor.unsqueeze_dim::<3>(2) * difference.clone()).sum_dim(1);
        let part = part.squeeze_dim::<2>(1) / unit.clone();
        let square = part.clone().powi_scalar(2).mean().clamp_min(LEAST_SQUARE);
        field = field + part / square.sqrt().reshape([1, 1]);
    }
    (field, unit)
}

fn softmax(logits: Tensor<2>, axis: usize) -> Tensor<2> {
    burn::tensor::activation::softmax(logits, axis)
}

#[cfg(test)]
mod tests {
    use swiftbrush_testing::{device, values};

    use super::*;

    fn points(values: &[[f32; 2]]) -> Tensor<2> {
        let data = TensorData::new(values.concat(), [values.len(), 2]);
        Tensor::from_data(data, &device())
    }

    #[test]
    fn a_sample_drifts_towards_the_preferred_and_away_from_the_rejected() {
        let own = points(&[[0.0, 0.1], [0.1, -0.1], [-0.1, 0.0]]);
        let targets = DriftTargets {
            positives: points(&[[1.0, 0.0]]),
            negatives: Some(points(&[[-1.0, 0.0]])),
            weight: 100.0,
        };
        let (field, _) = drift_field(own, &targets);
        let found = values(field);
        assert!(found.chunks(2).all(|sample| sample[0] > 0.5), "{found:?}");
    }

    #[test]
    fn samples_that_coincide_with_their_targets_do_not_drift() {
        let own = points(&[[0.5, 0.5], [0.5, 0.5]]);
        let targets = DriftTargets {
            positives: own.clone(),
            negatives: None,
            weight: 1.0,
        };
        assert_eq!(values(drift_field(own, &targets).0), [0.0; 4]);
    }
}
