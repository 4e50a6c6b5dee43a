"""Writes negative.safetensors: latents of SD-Turbo and of SwiftBrush's rule in one call with a negative prompt in cross-attention.

It reads the model that twins.py wrote, and the attention processors of the U-Net's golden scripts.
Run with diffusers 0.42: python negative.py
"""
import pathlib, sys, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from toy import HERE, PROMPTS

sys.path.append(str(pathlib.Path(__file__).parents[3] / "unet/tests/golden"))
from negative_attention import install, nag, nasa

pipeline = StableDiffusionPipeline.from_pretrained(HERE / "twins/sd-turbo", torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
generators = lambda: [torch.Generator().manual_seed(seed) for seed in (3, 4)]
tensors = {}
with torch.no_grad():
    negative = pipeline.encode_prompt("a", "cpu", 1, False)[0]
    context = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators()])
    alpha = pipeline.scheduler.alphas_cumprod.double()[999].sqrt()
    sigma = (1 - alpha**2).sqrt()
    plain = (noise - sigma * pipeline.unet(noise, 999, context).sample) / alpha
    for name, combine in {"nasa": nasa(0.2), "nasa.5": nasa(5.0), "nag": nag(2.0, 2.5, 0.375), "nag.40": nag(40.0, 2.5, 0.375)}.items():
        install(pipeline.unet, negative, combine)
        tensors[f"{name}.euler"] = pipeline(PROMPTS, num_inference_steps=1, guidance_scale=0.0, generator=generators(), output_type="latent").images
        tensors[f"{name}.one-step"] = ((noise - sigma * pipeline.unet(noise, 999, context).sample) / alpha).float()
for name in ("nasa", "nasa.5", "nag", "nag.40"):
    difference = (tensors[f"{name}.one-step"] - plain).abs().max() / plain.abs().max()
    print(f"{name}: differs from the plain latents by {difference:.4f} of their largest magnitude")
    assert difference > 1e-3
save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "negative.safetensors")
