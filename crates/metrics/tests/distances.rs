//! Comparison with pytorch-fid, torch-fidelity and NumPy (`golden/make.py`).

use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde::Deserialize;
use swiftbrush_metrics::{
    Error, Features, Gaussian, Groups, Moments, Statistics, at_infinity, density_coverage,
    diversity, frechet_distance, frechet_infinity, gaussian_mmd, half_sample_errors,
    inception_score, kernel_distance, nearest, precision_recall, squared_mmd, standard_error,
};

#[derive(Deserialize)]
struct Expected {
    pairs: Vec<Pair>,
    inception_score: (f64, f64),
    cmmd: Vec<(String, String, f64, f64)>,
    points: Vec<(usize, f64)>,
    at_infinity: f64,
    diversity: Vec<f64>,
    nearest: Vec<(usize, f64)>,
}

#[derive(Deserialize)]
struct Pair {
    first: String,
    second: String,
    k: usize,
    frechet: f64,
    subsets: Vec<(Vec<usize>, Vec<usize>)>,
    kernel: (f64, f64),
    precision: f64,
    recall: f64,
    density: f64,
    coverage: f64,
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("golden/expected.json")).unwrap()
}

fn features(name: &str) -> Features {
    let bytes = std::fs::read(golden("features.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let (numbers, _) = tensor.data().as_chunks::<4>();
    let values = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Features::new(tensor.shape()[1], values.collect()).unwrap()
}

fn gaussian(name: &str) -> Gaussian {
    Moments::of(&features(name)).gaussian().unwrap()
}

#[track_caller]
fn assert_close(found: f64, expected: f64, name: &str) {
    let error = (found - expected).abs() / expected.abs().max(1e-3);
    assert!(error < 1e-6, "{name}: {found}, not {expected}");
}

#[test]
fn distances_match_the_reference_implementations() {
    for pair in expected().pairs {
        let name = format!("{} {} {}", pair.first, pair.second, pair.k);
        let (first, second) = (features(&pair.first), features(&pair.second));
        let frechet = frechet_distance(&gaussian(&pair.first), &gaussian(&pair.second)).unwrap();
        assert_close(frechet, pair.frechet, &name);
        let (mean, deviation) = kernel_distance(&first, &second, &pair.subsets).unwrap();
        assert_close(mean, pair.kernel.0, &name);
        assert_close(deviation, pair.kernel.1, &name);
        let found = precision_recall(&first, &second, pair.k).unwrap();
        assert_eq!(found.precision, pair.precision, "{name}");
        assert_eq!(found.recall, pair.recall, "{name}");
        let found = density_coverage(&first, &second, pair.k).unwrap();
        assert_close(found.density, pair.density, &name);
        assert_eq!(found.coverage, pair.coverage, "{name}");
    }
}

#[test]
fn the_inception_score_matches_torch_fidelity() {
    let expected = expected().inception_score;
    let (mean, deviation) = inception_score(&features("logits"), 10).unwrap();
    assert_close(mean, expected.0, "mean");
    assert_close(deviation, expected.1, "deviation");
}

/// Far from the origin and close together, where a shift that differs by one bit between the sets would exceed all distances.
#[test]
fn distances_do_not_depend_on_the_origin() {
    let (a, b) = (features("a"), features("b"));
    // Steps of 2⁻⁷ at 2¹⁶ are exact in f32.
    let grid = |features: &Features, origin: f32| {
        let steps = features.values().iter().map(|x| (x * 32.0).round() / 128.0);
        let values = steps.map(|x| x + origin).collect();
        Features::new(features.width(), values).unwrap()
    };
    let at = |origin| precision_recall(&grid(&a, origin), &grid(&b, origin), 3).unwrap();
    assert_eq!(at(65536.0), at(0.0));
}

#[test]
fn merged_moments_are_those_of_the_whole() {
    let all = features("a");
    let whole = Moments::of(&all).gaussian().unwrap();
    for cut in [1, 77, 199] {
        let (left, right) = all.values().split_at(cut * all.width());
        let part =
            |values: &[f32]| Moments::of(&Features::new(all.width(), values.to_vec()).unwrap());
        let mut merged = part(left);
        merged.merge(&part(right)).unwrap();
        assert_eq!(merged.count(), 200);
        let merged = merged.gaussian().unwrap();
        for i in 0..all.width() {
            assert!((merged.mean[i] - whole.mean[i]).abs() < 1e-12);
            for j in 0..all.width() {
                assert!((merged.covariance[(i, j)] - whole.covariance[(i, j)]).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn distances_are_symmetric_and_zero_only_for_equal_sets() {
    let (a, b) = (gaussian("a"), gaussian("b"));
    assert!(frechet_distance(&a, &a).unwrap() < 1e-9);
    let (there, back) = (
        frechet_distance(&a, &b).unwrap(),
        frechet_distance(&b, &a).unwrap(),
    );
    assert!((there - back).abs() < 1e-9 * there);
    // In one dimension: the squared difference of the means plus that of the deviations.
    let one = |mean: f64, deviation: f64| Gaussian {
        mean: vec![mean],
        covariance: faer::Mat::from_fn(1, 1, |_, _| deviation * deviation),
    };
    let distance = frechet_distance(&one(1.0, 2.0), &one(-2.0, 0.5)).unwrap();
    assert!((distance - (9.0 + 2.25)).abs() < 1e-12);
    let (few, fewer) = (features("few"), features("fewer"));
    let (there, back) = (
        squared_mmd(&few, &fewer).unwrap(),
        squared_mmd(&fewer, &few).unwrap(),
    );
    assert!((there - back).abs() < 1e-12);
}

#[test]
fn statistics_are_read_from_pytorch_fid() {
    let read = Statistics::open(golden("pytorch_fid.npz")).unwrap();
    assert!(frechet_distance(&read.gaussian, &gaussian("a")).unwrap() < 1e-9);
    assert_eq!(read.network, None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.npz");
    for network in [None, Some("inception/pytorch-fid".to_owned())] {
        let written = Statistics {
            network,
            ..read.clone()
        };
        written.save(&path).unwrap();
        assert_eq!(Statistics::open(&path).unwrap(), written);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let whole = std::fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(37) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = Statistics::open(&path).unwrap_err().to_string();
        assert!(error.contains("statistics.npz"), "{error}");
    }
    let below = path.join("statistics.npz");
    assert!(matches!(read.save(&below), Err(Error::Io { .. })));
}

/// Writes `mu` and an identity `sigma` as other programs do.
fn write_statistics(path: &Path, mu: [f64; 2]) {
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    let mut array = |name, shape: &[u64], values: &[f64]| {
        archive.start_file(name, options).unwrap();
        let header = npyz::WriteOptions::new().default_dtype().shape(shape);
        let mut writer = header.writer(&mut archive).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
    };
    array("mu.npy", &[2], &mu);
    array("sigma.npy", &[2, 2], &[1.0, 0.0, 0.0, 1.0]);
    archive.finish().unwrap();
}

#[test]
fn statistics_that_are_not_finite_are_neither_read_nor_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.npz");
    write_statistics(&path, [0.5, 0.25]);
    let mut statistics = Statistics::open(&path).unwrap();
    assert_eq!(statistics.gaussian.mean, [0.5, 0.25]);
    let before = std::fs::read(&path).unwrap();
    for value in [f64::NAN, f64::INFINITY] {
        statistics.gaussian.mean[1] = value;
        let error = statistics.save(&path).unwrap_err().to_string();
        assert!(error.contains("NaN or infinite"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
    write_statistics(&path, [0.5, f64::NAN]);
    let error = Statistics::open(&path).unwrap_err().to_string();
    assert!(error.contains("NaN or infinite"), "{error}");
}

#[test]
fn incomparable_features_are_rejected() {
    let (a, logits) = (features("a"), features("logits"));
    let wide = |error: Error| {
        matches!(
            error,
            Error::Width {
                expected: 24,
                found: 9
            }
        )
    };
    assert!(wide(squared_mmd(&a, &logits).unwrap_err()));
    assert!(wide(precision_recall(&a, &logits, 3).unwrap_err()));
    assert!(wide(
        frechet_distance(&gaussian("a"), &gaussian("logits")).unwrap_err()
    ));
    assert!(wide(
        Moments::of(&a).merge(&Moments::of(&logits)).unwrap_err()
    ));
    let few = |error: Error| matches!(error, Error::TooFew { .. });
    let one = Features::new(24, vec![0.0; 24]).unwrap();
    assert!(few(Moments::of(&one).gaussian().unwrap_err()));
    assert!(few(squared_mmd(&a, &one).unwrap_err()));
    assert!(few(density_coverage(&a, &features("fewer"), 7).unwrap_err()));
    assert!(few(inception_score(&one, 2).unwrap_err()));
    let error = Features::new(2, vec![0.0, 1.0, 2.0, f32::NAN]).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 1 }));
}

#[test]
fn the_other_scores_match_numpy() {
    let expected = expected();
    for (first, second, sigma, cmmd) in expected.cmmd {
        let found = gaussian_mmd(&features(&first), &features(&second), sigma).unwrap();
        assert!((found - cmmd).abs() < 1e-12, "{found} {cmmd}");
    }
    let found = at_infinity(&expected.points);
    assert_close(found, expected.at_infinity, "the end of the line");
    let found = diversity(&features("a"), 4).unwrap();
    for (found, expected) in found.iter().zip(&expected.diversity) {
        assert_close(*found, *expected, "diversity");
    }
    assert_eq!(found.len(), expected.diversity.len());
    let found = nearest(&features("twice"), &features("a")).unwrap();
    for ((row, distance), (expected, of_numpy)) in found.iter().zip(&expected.nearest) {
        assert_eq!(row, expected);
        assert!((distance - of_numpy).abs() < 1e-9, "{distance} {of_numpy}");
    }
    assert_eq!(found.len(), expected.nearest.len());
}

#[test]
fn a_mean_has_the_standard_error_of_statistics() {
    let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
    let mean = |rows: &[usize]| {
        let sum: f64 = rows.iter().map(|row| values[*row]).sum();
        Ok(sum / rows.len() as f64)
    };
    let found = standard_error(Groups::single(400), 2000, 1, mean).unwrap();
    // Deviation of 0…19, over the square root of their number.
    let expected = (399.0f64 / 12.0).sqrt() / 20.0;
    assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
    let error = |groups, resamples| standard_error(groups, resamples, 1, mean).is_err();
    assert!(error(Groups::single(0), 9) && error(Groups::single(9), 1));
}

/// Four equal images of a prompt carry no more information than one.
#[test]
fn rows_of_a_group_are_drawn_together() {
    let values: Vec<f64> = (0..400).map(|i| f64::from(i / 4 % 20)).collect();
    let mean = |rows: &[usize]| {
        let sum: f64 = rows.iter().map(|row| values[*row]).sum();
        Ok(sum / rows.len() as f64)
    };
    let groups = Groups::new(400, 4).unwrap();
    let found = standard_error(groups, 2000, 1, mean).unwrap();
    let expected = (399.0f64 / 12.0).sqrt() / 10.0;
    assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
    // A mean over half of the groups deviates from the mean over all as much as that does from the true mean.
    let halves = |rows: &[usize], _: &[usize]| Ok([mean(rows)?]);
    let [found] = half_sample_errors(groups, groups, 2000, 1, halves).unwrap();
    assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
    for (rows, size) in [(400, 3), (400, 0), (2, 4)] {
        assert!(Groups::new(rows, size).is_err(), "{rows} {size}");
    }
}

/// The interval must cover the variation of precision and recall between pairs of samples.
#[test]
fn errors_of_precision_and_recall_cover_their_deviation() {
    const ROWS: usize = 200;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut normal = || -> f32 { (0..12).map(|_| rng.random::<f32>() - 0.5).sum() };
    let mut sample = |prompts: usize, spread: f32| {
        let mut values = Vec::new();
        for _ in 0..prompts {
            let centre: [f32; 4] = std::array::from_fn(|_| 0.84 * normal());
            for _ in 0..ROWS / prompts {
                values.extend(centre.map(|centre| spread * (centre + 0.55 * normal())));
            }
        }
        Features::new(4, values).unwrap()
    };
    let overlap = |real: &Features, generated: &Features| {
        let found = precision_recall(real, generated, 3)?;
        Ok([found.precision, found.recall])
    };
    let (mut values, mut estimates) = (Vec::new(), Vec::new());
    for trial in 0..60 {
        let (real, generated) = (sample(ROWS, 1.0), sample(ROWS / 4, 0.8));
        values.push(overlap(&real, &generated).unwrap());
        if trial < 12 {
            let (of_real, of_generated) = (Groups::single(ROWS), Groups::new(ROWS, 4).unwrap());
            let errors = half_sample_errors(of_real, of_generated, 20, trial, |a, b| {
                overlap(&real.select(a), &generated.select(b))
            });
            estimates.push(errors.unwrap());
        }
    }
    for index in 0..2 {
        let mean = |values: &[[f64; 2]]| {
            values.iter().map(|value| value[index]).sum::<f64>() / values.len() as f64
        };
        let (value, estimate) = (mean(&values), mean(&estimates));
        let squares = values.iter().map(|found| (found[index] - value).powi(2));
        let deviation = (squares.sum::<f64>() / 59.0).sqrt();
        assert!(
            (0.9..1.8).contains(&(estimate / deviation)),
            "{estimate} {deviation}"
        );
        let binomial = (value * (1.0 - value) / ROWS as f64).sqrt();
        assert!(binomial < 0.9 * deviation, "{binomial} {deviation}");
    }
}

/// Between samples of the same distribution the distance is pure bias, which vanishes at infinity.
#[test]
fn fewer_images_raise_the_distance_and_extrapolation_corrects_it() {
    let all = features("a");
    let few = Moments::of(&all.select(&(0..60).collect::<Vec<_>>()));
    let reference = gaussian("a");
    let of_few = frechet_distance(&reference, &few.gaussian().unwrap()).unwrap();
    let of_all = frechet_distance(&reference, &reference).unwrap();
    let infinity = frechet_infinity(&reference, &all, 50, 8, 3).unwrap();
    assert!(of_few > 0.5 && of_all < 1e-9, "{of_few} {of_all}");
    assert!(infinity.abs() < of_few, "{infinity}");
    assert_eq!(
        infinity,
        frechet_infinity(&reference, &all, 50, 8, 3).unwrap()
    );
    assert!(frechet_infinity(&reference, &all, 200, 8, 3).is_err());
}

#[test]
fn incomplete_groups_are_rejected() {
    for size in [0, 1, 3] {
        assert!(diversity(&features("a"), size).is_err(), "{size}");
    }
    let none = Features::new(24, Vec::new()).unwrap();
    assert!(nearest(&features("a"), &none).is_err());
    assert!(gaussian_mmd(&features("a"), &none, 1.0).is_err());
}
