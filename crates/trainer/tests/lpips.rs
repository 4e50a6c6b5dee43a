//! LPIPS, and regression with it.

mod common;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use common::{distiller, efficient, networks, recipe, with};
use swiftbrush_testing::{F32, Golden, assert_close, device, random, values};
use swiftbrush_trainer::{
    Distiller, Error, LatentKind, LatentSet, LatentSetWriter, Lpips, LpipsNetworks, MemoryPlan,
    Networks, Recipe, RegressionLoss, RegressionRecipe,
};

fn files() -> [PathBuf; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lpips");
    ["vgg16.pth", "vgg.pth"].map(|name| folder.join(name))
}

fn lpips(device: &Device) -> Lpips {
    let [vgg16, linear] = files();
    Lpips::load(vgg16, linear, device).unwrap()
}

/// `golden/make_lpips.py`.
#[test]
fn distances_and_gradients_are_those_of_the_package() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "lpips");
    let device = device();
    let (lpips, tensor) = (lpips(&device), |name| golden.tensor::<4>(name, &device));
    let found = lpips.distance(tensor("images"), tensor("targets"));
    assert_close(found, tensor("distances"), F32);
    let images = tensor("images").autodiff().require_grad();
    let network = lpips.clone().freeze().train();
    let distances = network.distance(images.clone(), tensor("targets").autodiff());
    let grad = images.grad(&distances.sum().backward()).unwrap();
    assert_close(grad, tensor("images_grad"), F32);
}

#[test]
fn an_image_has_no_distance_and_no_gradient_to_itself() {
    let device = device();
    let lpips = lpips(&device).freeze().train();
    for image in [
        random([1, 3, 32, 32], 1, &device),
        Tensor::zeros([1, 3, 32, 32], &device),
    ] {
        let target = image.clone().autodiff();
        let image = image.autodiff().require_grad();
        let distance = lpips.distance(image.clone(), target);
        assert_eq!(values(distance.clone().inner()), [0.0]);
        let grad = image.grad(&distance.sum().backward()).unwrap();
        assert!(values(grad).iter().all(|&value| value == 0.0));
    }
}

#[test]
fn files_that_do_not_match_are_rejected_by_name() {
    let [vgg16, linear] = files();
    for (files, named) in [
        ([&linear, &vgg16], "features.0.weight"),
        ([&vgg16, &vgg16], "lins.0"),
    ] {
        let error = Lpips::load(files[0], files[1], &device()).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

fn networks_with_lpips() -> Networks {
    let networks = networks(&device());
    let decoder = networks.clip.clone().unwrap().decoder;
    let lpips = lpips(&device());
    networks.with_lpips(LpipsNetworks { lpips, decoder })
}

/// A recipe with a regression whose weight drowns the other losses.
fn regularized(recipe: Recipe, weight: f64) -> Recipe {
    with(recipe, |recipe| {
        recipe.pairs = Some(RegressionRecipe {
            weight,
            loss: RegressionLoss::Lpips,
            batch: 2,
            ..RegressionRecipe::default()
        });
    })
}

fn pairs(folder: &Path) -> LatentSet {
    let folder = folder.join("pairs");
    let mut writer =
        LatentSetWriter::open(&folder, LatentKind::Pairs, [4, 8, 8], Default::default()).unwrap();
    for seed in 0..2 {
        let pair = random([2, 4, 8, 8], seed, &device());
        writer.push(format!("{seed} circles"), pair).unwrap();
    }
    writer.finish().unwrap();
    LatentSet::open(folder).unwrap()
}

#[test]
fn the_student_approaches_its_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let networks = networks_with_lpips();
    let prompts = ["a", "b", "c", "d"].map(str::to_owned);
    for recipe in [recipe(), efficient()] {
        let recipe = with(regularized(recipe, 1e4), |recipe| {
            (recipe.steps, recipe.max_grad_norm) = (100, 1.0);
        });
        let distiller = distiller(recipe, &networks);
        let mut distiller = distiller.with_latents(pairs(folder.path())).unwrap();
        let losses = (0..12).map(|_| {
            let report = distiller.step(&prompts).unwrap();
            report.losses.rewards["pairs"]
        });
        let losses: Vec<f64> = losses.collect();
        assert!(losses[11] < losses[0], "{losses:?}");
    }
}

#[test]
fn lpips_without_networks_or_with_others_is_rejected_and_planned() {
    let recipe = regularized(recipe(), 0.25);
    let error = Distiller::new(recipe.clone(), networks(&device()), &device()).unwrap_err();
    assert!(matches!(error, Error::NoLpips), "{error}");
    let networks = networks_with_lpips();
    let before = distiller(recipe.clone(), &networks);
    let mut others = networks.clone();
    others.lpips.as_mut().unwrap().decoder = swiftbrush_testing::fill(
        swiftbrush_vae::AutoencoderTinyConfig::tiny().init(&device()),
        9,
    );
    let after = distiller(recipe.clone(), &others);
    let changes = after.fingerprint().changes(before.fingerprint(), &[]);
    let names: Vec<_> = changes.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["lpips"]);
    let plan = MemoryPlan::new(&recipe, &networks, 1).to_string();
    assert!(plan.contains("LPIPS and its decoder"), "{plan}");
}
