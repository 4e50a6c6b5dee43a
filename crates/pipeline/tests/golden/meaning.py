"""Writes meaning.safetensors: the results of diffusers for options whose meaning it defines.

- `guidance.SCALE`: SD-Turbo in one step at guidance scales of 0, 0.5, 1 and 1.5;
- `swapped.CLASS`: Stable Diffusion 1.5's own scheduler file, which names no timestep_spacing, with another sampler
  (`CLASS.from_config(pipe.scheduler.config)`) and 10 steps (4 for LCM);
- `folder.KEY`: the folder's own scheduler after StableDiffusionPipeline has corrected its outdated keys;
- `encoded.*`: an image encoded in tiles.

It reads the models written by twins.py. Run with diffusers 0.42: python meaning.py
"""
import json, pathlib, shutil, tempfile, torch
from diffusers import (AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       LCMScheduler, PNDMScheduler, StableDiffusionPipeline)
from safetensors.torch import save_file
from toy import HERE, PROMPTS

tensors = {}

@torch.no_grad()
def latents(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    return pipeline(PROMPTS, generator=generators, output_type="latent", **options).images

turbo = StableDiffusionPipeline.from_pretrained(HERE / "twins/sd-turbo", torch_dtype=torch.float32)
for scale in (0.0, 0.5, 1.0, 1.5):
    tensors[f"guidance.{scale}"] = latents(turbo, num_inference_steps=1, guidance_scale=scale)

SD15 = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False}
OLD = {"_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085}
BARE = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085}

def with_scheduler(config):
    folder = pathlib.Path(tempfile.mkdtemp()) / "model"
    shutil.copytree(HERE / "twins/sd15", folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text()); index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return StableDiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32)

sd15 = with_scheduler(SD15)
file = sd15.scheduler.config
for kind in (PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler):
    sd15.scheduler = kind.from_config(file)
    tensors[f"swapped.{kind.__name__}"] = latents(sd15, num_inference_steps=4 if kind is LCMScheduler else 10, guidance_scale=1.0)
tensors["folder.old"] = latents(with_scheduler(OLD), num_inference_steps=10, guidance_scale=1.0)
bare = with_scheduler(BARE)
tensors["folder.bare"] = latents(bare, num_inference_steps=10, guidance_scale=1.0)
bare.scheduler = DDIMScheduler.from_config(bare.scheduler.config)
tensors["folder.bare-ddim"] = latents(bare, num_inference_steps=10, guidance_scale=1.0)

vae = AutoencoderKL.from_pretrained(HERE / "twins/unequal/vae", torch_dtype=torch.float32)
vae.enable_tiling()
vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
torch.manual_seed(0)
tensors["encoded.image"] = torch.rand(1, 3, 42, 26) * 2 - 1
with torch.no_grad():
    posterior = vae.encode(tensors["encoded.image"]).latent_dist
tensors["encoded.mode"] = posterior.mean * vae.config.scaling_factor
tensors["encoded.log_variance"] = posterior.logvar
save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "meaning.safetensors")
