"""Loads the files that the example convert_lora writes from adapters/ with diffusers and PEFT, and compares the images they generate.

    cargo build --release --example convert_lora
    python check_ours.py ../../../../target/release/examples/convert_lora

Not tested: kohya's layout with an attention layer whose alpha differs from that of most others. diffusers 0.42 uses the alpha
of the others for such a layer (its alpha_pattern then contains "….processor.to_k_lora.down.weight").
"""
import pathlib, subprocess, sys, tempfile, torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file
from toy import HERE, PROMPTS

goldens = load_file(HERE / "adapters.safetensors")

def fresh():
    pipeline = StableDiffusionPipeline.from_pretrained(HERE / "twins/sd15", variant="fp16", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

@torch.no_grad()
def check(name, golden, pipeline):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    latents = pipeline(PROMPTS, negative_prompt=["a"] * 2, generator=generators, num_inference_steps=5, guidance_scale=4.0, output_type="latent").images
    error = (latents - goldens[golden]).abs().max() / goldens[golden].abs().max()
    print(f"{name:20} {error:.1e}", flush=True)
    assert error < 1e-4

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    for source, layout, golden in [("kohya", "diffusers", "adapted"), ("diffusers", "kohya", "adapted"), ("kohya-ldm", "diffusers-lora", "adapted"),
                                   ("diffusers-processor", "diffusers-processor", "attention"), ("diffusers-processor", "diffusers", "attention")]:
        file = folder / f"{layout}.safetensors"
        subprocess.run([sys.argv[1], HERE / f"adapters/{source}.safetensors", file, "--layout", layout], check=True, capture_output=True)
        pipeline = fresh()
        pipeline.load_lora_weights(folder, weight_name=file.name)
        check(layout, golden, pipeline)
    subprocess.run([sys.argv[1], HERE / "adapters/peft/adapter_model.safetensors", folder / "adapter_model.safetensors", "--layout", "peft"],
                   check=True, capture_output=True)
    pipeline = fresh()
    pipeline.unet = PeftModel.from_pretrained(pipeline.unet, folder).base_model.model
    check("peft (from rsLoRA)", "rslora", pipeline)
