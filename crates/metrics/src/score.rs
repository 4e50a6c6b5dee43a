use crate::{Error, Features};

/// Inception score: mean and standard deviation over `splits` consecutive parts of `exp(E[KL(p(y|x) ‖ p(y))])` (Salimans et al.,
/// arXiv 1606.03498, §4), from the 1008 logits of Inception. Shuffle the rows first; ten splits are usual.
///
/// # Errors
///
/// If there are fewer rows than splits.
///
/// # Panics
///
/// If `splits` is zero.
#[track_caller]
pub fn inception_score(logits: &Features, splits: usize) -> Result<(f64, f64), Error> {
    assert!(splits > 0, "expected at least one split");
    if logits.len() < splits {
        return Err(Error::TooFew {
            what: "the inception score",
            needed: splits,
            found: logits.len(),
        });
    }
    let rows: Vec<Vec<f64>> = logits.rows().map(log_softmax).collect();
    let scores: Vec<f64> = (0..splits)
        .map(|split| {
            let range = split * rows.len() / splits..(split + 1) * rows.len() / splits;
            score(&rows[range])
        })
        .collect();
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores
        .iter()
        .map(|score| (score - mean).powi(2))
        .sum::<f64>()
        / count;
    Ok((mean, variance.sqrt()))
}

fn score(rows: &[Vec<f64>]) -> f64 {
    let count = rows.len() as f64;
    let mut marginal = vec![0.0; rows[0].len()];
    for row in rows {
        for (sum, log) in marginal.iter_mut().zip(row) {
            *sum += log.exp() / count;
        }
    }
    let divergence = |row: &Vec<f64>| -> f64 {
        row.iter()
            .zip(&marginal)
            .map(|(log, mean)| log.exp() * (log - mean.ln()))
            .sum()
    };
    (rows.iter().map(divergence).sum::<f64>() / count).exp()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    let shifted = logits.iter().map(|x| f64::from(*x) - f64::from(largest));
    let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|x| x - total).collect()
}
