"""Writes model/, a toy-sized Stable Diffusion saved by diffusers, and paintings.safetensors, the images it generates.

Weights and noise are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42, transformers 5.23 and torch 2.15: python make.py
"""
import shutil, torch
from diffusers import (AutoencoderKL, AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler,
                       PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel
from toy import HERE, LENGTH, PROMPTS, SCHEDULE, perturbed, tokenizer

torch.manual_seed(0)
tokenizer, size = tokenizer()
text_encoder = perturbed(CLIPTextModel(CLIPTextConfig(
    vocab_size=size, hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, projection_dim=12,
    max_position_embeddings=LENGTH, hidden_act="gelu", bos_token_id=size - 2, eos_token_id=size - 1)))
unet = perturbed(UNet2DConditionModel(
    sample_size=8, block_out_channels=[8, 16], down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], layers_per_block=1, attention_head_dim=[1, 2],
    cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4))
vae = perturbed(AutoencoderKL(
    block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.6))
tiny = perturbed(AutoencoderTiny(
    encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1)))
pipeline = StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False), None, None,
                                   requires_safety_checker=False)
folder = HERE / "model"
shutil.rmtree(folder, ignore_errors=True)
pipeline.save_pretrained(folder)
tiny.save_pretrained(folder / "taesd")

pipeline.to(dtype=torch.float64)
pipeline.set_progress_bar_config(disable=True)
noise = torch.randn(2, 4, 8, 8)
tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
tensors = dict(noise=noise, tokens=tokens, context=text_encoder(tokens).last_hidden_state)

def paint(name, scheduler, vae, **options):
    pipeline.scheduler, pipeline.vae = scheduler, vae.double()
    ask = dict(prompt=PROMPTS, negative_prompt=["a"] * 2, **options)
    tensors[f"{name}.latents"] = pipeline(latents=noise.double(), output_type="latent", **ask).images
    with torch.no_grad():
        tensors[f"{name}.images"] = vae.decode(tensors[f"{name}.latents"] / vae.config.scaling_factor).sample

ddim = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
euler = lambda spacing: EulerDiscreteScheduler(**SCHEDULE, timestep_spacing=spacing)
paint("ddim", ddim, vae, num_inference_steps=3, guidance_scale=4.5)
paint("euler", euler("leading"), vae, num_inference_steps=4, guidance_scale=3.0)
paint("dpm", DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="leading"), vae, num_inference_steps=5, guidance_scale=3.0)
paint("pndm", PNDMScheduler(**SCHEDULE, skip_prk_steps=True), vae, num_inference_steps=6, guidance_scale=3.0)
paint("turbo", euler("trailing"), tiny, num_inference_steps=1, guidance_scale=0.0)
save_file({k: (v if v.dtype == torch.int64 else v.detach().float()).contiguous() for k, v in tensors.items()},
          HERE / "paintings.safetensors")
