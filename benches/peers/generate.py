"""Loads a model with diffusers and generates one image, in one step by default; the counterpart of the example `generate`.

    python generate.py FOLDER [--dtype f32|f16|bf16] [--device cpu|cuda] [--tiny] [--seed N] [--save FILE]
                       [--steps N] [--guidance G] [--image FILE --strength S]

The decoder runs in the channels-last memory format and the denoiser in the default one, whichever is faster for each.
"""
import argparse, resource, time
begun = time.perf_counter()
import torch
from diffusers import AutoencoderTiny, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
imported = time.perf_counter()

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--dtype", default="f32", choices=["f32", "f16", "bf16"])
parser.add_argument("--device", default="cpu")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tiny", action="store_true", help="decode with the component taesd")
parser.add_argument("--steps", type=int, default=1)
parser.add_argument("--guidance", type=float, default=0.0)
parser.add_argument("--image", help="start from this image instead of noise")
parser.add_argument("--strength", type=float, default=0.8)
parser.add_argument("--save")
args = parser.parse_args()
dtype = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16)[args.dtype]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

kind = StableDiffusionImg2ImgPipeline if args.image else StableDiffusionPipeline
pipeline = kind.from_pretrained(args.folder, torch_dtype=dtype)
if args.tiny:
    pipeline.vae = AutoencoderTiny.from_pretrained(args.folder, subfolder="taesd", torch_dtype=dtype)
pipeline.vae.to(memory_format=torch.channels_last)
pipeline.to(args.device)
pipeline.set_progress_bar_config(disable=True)
loaded = time.perf_counter()
print(f"imported in {imported - begun:.2f} s, loaded in {loaded - imported:.2f} s, peak {peak():.2f} GiB", flush=True)
generator = torch.Generator().manual_seed(args.seed)
start = dict(image=Image.open(args.image).convert("RGB"), strength=args.strength) if args.image else {}
latents = pipeline("a photo of a cat", num_inference_steps=args.steps, guidance_scale=args.guidance, generator=generator,
                   output_type="latent", **start).images
print(f"latents after {time.perf_counter() - loaded:.2f} s", flush=True)
with torch.no_grad():
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.cpu()
print(f"generated in {time.perf_counter() - loaded:.2f} s, {time.perf_counter() - begun:.2f} s in all, peak {peak():.2f} GiB", flush=True)
if args.save:
    save_file({"latents": latents.float().contiguous(), "image": image.float().contiguous()}, args.save)
