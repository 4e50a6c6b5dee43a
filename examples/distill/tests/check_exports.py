"""Opens what `distill export` writes with diffusers and PEFT, and compares the pictures with those of the example generate.

    cargo build --release --workspace --example distill --example generate
    python examples/distill/tests/check_exports.py [--student FOLDER] [--binaries target/release/examples]

Trains two steps of each scheme from FOLDER [default: the miniature], at a rate at which the student changes visibly. Opened are the
folder, the single file (with the folder's configurations, because none has to be found for it), and of scheme B the adapter in PEFT's
and kohya's layouts beside the initial student. The largest error is relative to the largest latent or pixel.
"""
import argparse, pathlib, subprocess, tempfile, torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).parents[3]
parser = argparse.ArgumentParser()
parser.add_argument("--student", type=pathlib.Path, default=ROOT / "examples/miniature/model")
parser.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/release/examples")
args = parser.parse_args()
PROMPT = "a red circle above a green star"
BOUND = 1e-4

def program(name, *arguments):
    subprocess.run([args.binaries / name, *map(str, arguments)], check=True, capture_output=True)

def ours(model, work):
    """Noise, latents and image."""
    file = work / "ours.safetensors"
    program("generate", "--model", model, "--seed", 3, "--save-tensors", file, "--output", work / "ours.png", PROMPT)
    return load_file(file)

@torch.no_grad()
def check(name, expected, pipeline):
    # One step from pure noise to the predicted image.
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(PROMPT, num_inference_steps=1, guidance_scale=0, latents=expected["noise"].clone(), output_type="latent").images
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    errors = []
    for found, known in [(latents, expected["latents"]), (image, expected["image"])]:
        errors.append(((found - known).abs().max() / known.abs().max()).item())
    print(f"{name:26} latents {errors[0]:.1e}  image {errors[1]:.1e}", flush=True)
    assert max(errors) < BOUND, name
    return latents

def folder(path):
    return StableDiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32)

def single_file(path, configurations):
    return StableDiffusionPipeline.from_single_file(path, config=str(configurations), local_files_only=True, torch_dtype=torch.float32)

for scheme in "ab":
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        (work / "prompts.txt").write_text("a red circle\na green star\n")
        (work / "recipe.toml").write_text(f"""scheme = "{scheme}"
steps = 2
batch = 1
accumulation = 1
learning_rate = 1e-3
preview_every = 0
fake_guidance = 1.0
fake_lora.rank = 4
ema_decay = 0.0
""" + ("student_lora.rank = 4\nclip.threshold = 1.0\n" if scheme == "b" else ""))
        clip = ["--clip", args.student] if scheme == "b" else []
        program("distill", "--teacher", args.student, "--student", args.student, *clip, "--prompts", work / "prompts.txt",
                "--recipe", work / "recipe.toml", "--run", work / "run")
        student, file = work / "student", work / "student.safetensors"
        program("distill", "export", work / "run", "--output", student, "--single-file", file)
        expected = ours(student, work)
        before = ours(args.student, work)
        change = (expected["latents"] - before["latents"]).abs().max() / before["latents"].abs().max()
        print(f"scheme {scheme}: latents changed by {change:.1e}")
        assert change > 100 * BOUND, "an export of the initial student would pass"
        check("folder", expected, folder(student))
        check("single file", expected, single_file(file, student))
        if scheme == "b":
            pipeline = folder(args.student)
            pipeline.unet = PeftModel.from_pretrained(pipeline.unet, student / "adapters/peft").base_model.model
            check("adapter in PEFT's layout", expected, pipeline)
            pipeline = folder(args.student)
            pipeline.load_lora_weights(student / "adapters", weight_name="kohya.safetensors")
            check("adapter in kohya's layout", expected, pipeline)
