//! Parity with diffusers; the files are written by `golden/make.py`.

use swiftbrush_checkpoint::Model;
use swiftbrush_testing::{F32, Golden, assert_close, device};
use swiftbrush_vae::{AutoencoderKl, AutoencoderTiny};

fn check_kl(name: &str) {
    let (golden, device) = (Golden::open(env!("CARGO_MANIFEST_DIR"), name), device());
    let folder = golden.model_folder("vae");
    let folder = Model::open(folder.path()).unwrap();
    let vae = AutoencoderKl::from_model(&folder, "vae", None, &device).unwrap();
    let tensor = |name| golden.tensor::<4>(name, &device);

    let posterior = vae.encode(tensor("images"));
    assert_close(posterior.mode(), tensor("mean"), F32);
    assert_close(posterior.sample(tensor("noise")), tensor("sample"), F32);
    assert_close(vae.decode(tensor("latents")), tensor("decoded"), F32);
}

#[test]
fn kl_with_two_levels_agrees() {
    check_kl("kl_two_levels");
}

#[test]
fn kl_with_three_levels_and_another_scale_agrees() {
    check_kl("kl_three_levels");
}

fn check_tiny(name: &str) {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), name);
    let device = device().autodiff();
    let folder = golden.model_folder("vae");
    let folder = Model::open(folder.path()).unwrap();
    let vae = AutoencoderTiny::from_model(&folder, "vae", None, &device).unwrap();
    let tensor = |name| golden.tensor::<4>(name, &device);

    assert_close(
        vae.encode(tensor("images")).inner(),
        tensor("encoded").inner(),
        F32,
    );
    let latents = tensor("latents").require_grad();
    let decoded = vae.decode(latents.clone());
    assert_close(decoded.clone().inner(), tensor("decoded").inner(), F32);
    let grads = (decoded * tensor("weight")).sum().backward();
    let expected = tensor("latents_grad").inner();
    assert_close(latents.grad(&grads).unwrap(), expected.clone(), F32);

    let pass = vae.decode_checkpointed(latents);
    assert_close(pass.images(), tensor("decoded").inner(), F32);
    let grad = pass.backward(&vae, tensor("weight").inner());
    assert_close(grad, expected, F32);
}

#[test]
fn tiny_with_two_stages_agrees() {
    check_tiny("tiny_two_stages");
}

#[test]
fn tiny_with_four_stages_agrees() {
    check_tiny("tiny_four_stages");
}
