"""Writes edit.safetensors: ChordEdit, masks and interpolation as their formulas say, on the toy model of make.py.

- `field.NAME`, `moved.NAME`, `refined.NAME`: the transport field, the latents moved along it, and the refinement, for options
  of tests/edit.rs; the U-Net's output is taken as noise, or as velocity in `velocity`;
- `mask.*`: shares of blocks, the Gaussian, the automatic mask and its enlargement;
- `edit.*`: an edit from an image and prompts to latents, plain and with a mask;
- `masked.*`: image to image with a mask, in one step and with DDIM;
- `slerp`: spherical interpolation of noise.

Weights and inputs are rounded to f32, everything is computed in f64 and stored as f32.
Run with diffusers 0.42 and torch 2.15: python edit.py
"""
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from toy import HERE, LENGTH, SCHEDULE

torch.manual_seed(5)
pipeline = StableDiffusionPipeline.from_pretrained(HERE / "model", torch_dtype=torch.float64, safety_checker=None)
unet, vae = pipeline.unet, pipeline.vae
cumprod = torch.cumprod(1 - torch.linspace(SCHEDULE["beta_start"] ** .5, SCHEDULE["beta_end"] ** .5, 1000, dtype=torch.float64) ** 2, 0)
rounded = lambda *shape: torch.randn(*shape).double()
tensors = {}

def index(t):
    return round(999 * t)

def clean(z, k, context, kind="epsilon"):
    """x̂₀ of noisy latents at index k."""
    alpha, sigma = cumprod[k] ** .5, (1 - cumprod[k]) ** .5
    with torch.no_grad():
        output = unet(z, torch.full((len(z),), k), context).sample
    return (z - sigma * output) / alpha if kind == "epsilon" else alpha * z - sigma * output

def noisy(x, e, k):
    return cumprod[k] ** .5 * x + (1 - cumprod[k]) ** .5 * e

def field(x, source, target, noises, t=.9, delta=.15, kind="epsilon"):
    def R(time):
        k = index(time)
        z = [noisy(x, e, k) for e in noises]
        return sum(clean(one, k, target, kind) - clean(one, k, source, kind) for one in z) / len(noises)
    return (t * R(t - delta) + delta * R(t)) / (t + delta)

def refine(x, target, e, t=.3, blend=1.0, kind="epsilon"):
    k = index(t)
    return blend * clean(noisy(x, e, k), k, target, kind) + (1 - blend) * x

x, noises = rounded(2, 4, 8, 8), [rounded(2, 4, 8, 8) for _ in range(3)]
source, target = 3 * rounded(2, LENGTH, 12), 3 * rounded(2, LENGTH, 12)
tensors |= dict(latents=x, source=source, target=target, **{f"noise.{i}": e for i, e in enumerate(noises)})
for name, n, step, refinement, options in [
    ("default", 1, 1.0, {}, {}),
    ("three", 3, .7, dict(t=.45, blend=.7), dict(t=.8, delta=.3)),
    ("one", 1, 1.5, {}, dict(t=.75, delta=0.)),
    ("velocity", 2, 1.0, dict(kind="velocity"), dict(kind="velocity")),
]:
    tensors[f"field.{name}"] = field(x, source, target, noises[:n], **options)
    moved = tensors[f"moved.{name}"] = x + step * tensors[f"field.{name}"]
    tensors[f"refined.{name}"] = refine(moved, target, noises[0], **refinement)

def blur(mask, deviation):
    """A Gaussian along both axes, normalised within the image."""
    if deviation == 0:
        return mask
    def matrix(n):
        place = torch.arange(n, dtype=torch.float64)
        weights = torch.exp(-(place[:, None] - place[None]) ** 2 / (2 * deviation ** 2))
        return weights / weights.sum(1, keepdim=True)
    return matrix(mask.shape[2]) @ mask @ matrix(mask.shape[3]).T

def in_latents(pixels, deviation):
    return blur(torch.nn.functional.avg_pool2d(pixels, 2), deviation)

def automatic(field, deviation, threshold, feather):
    size = blur(field.abs().mean(1, keepdim=True), deviation)
    return blur((size / size.amax((1, 2, 3), keepdim=True) >= threshold).double(), feather)

pixels = torch.zeros(2, 1, 16, 16).double()
pixels[0, :, 2:9, 3:12] = 1
pixels[1, :, 7:15, :5] = 102 / 255
tensors["mask.pixels"] = pixels
tensors["mask.latents"], tensors["mask.feathered"] = in_latents(pixels, 0), in_latents(pixels, .8)
tensors["mask.automatic"] = automatic(tensors["field.default"], 1.2, .6, .5)
enlarged = torch.nn.functional.interpolate(tensors["mask.automatic"], scale_factor=2, mode="bilinear")
tensors["mask.enlarged"] = (enlarged * 255).round() / 255

def encoded(images):
    with torch.no_grad():
        return vae.encode(images).latent_dist

def prompts(texts):
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipeline.text_encoder(tokens).last_hidden_state

images = (torch.randint(0, 256, (2, 3, 16, 16)) / 127.5 - 1).double()
tensors["images"] = images
x = encoded(images).mode() * vae.config.scaling_factor
sources, targets = prompts(["red circle", "on"]), prompts(["circle", "re red"])
R, e = field(x, sources, targets, noises[:1]), noises[0]
tensors["edit.plain"] = refine(x + R, targets, e)
for name, m in [("given", in_latents(pixels, .5)), ("automatic", automatic(R, 1., .85, .5))]:
    moved = x + m * R
    tensors[f"edit.{name}"] = (1 - m) * x + m * refine(moved, targets, e, blend=.8)
with torch.no_grad():
    decoded = vae.decode(tensors["edit.given"] / vae.config.scaling_factor).sample
tensors["edit.pasted"] = (1 - pixels) * images + pixels * decoded

# Image to image: the posterior is sampled with the first noise.
posterior, m = encoded(images), in_latents(pixels, .5)
x = (posterior.mean + posterior.std * noises[0]) * vae.config.scaling_factor
tensors["masked.one-step"] = (1 - m) * x + m * clean(noisy(x, noises[1], 499), 499, targets)
ddim = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
ddim.set_timesteps(5)
steps = ddim.timesteps[2:]
z = ddim.add_noise(x, noises[1], steps[:1])
for i, t in enumerate(steps):
    with torch.no_grad():
        z = ddim.step(unet(z, t, targets).sample, t, z).prev_sample
    kept = ddim.add_noise(x, noises[1], steps[i + 1:i + 2]) if i + 1 < len(steps) else x
    z = (1 - m) * kept + m * z
tensors["masked.ddim"] = z

def slerp(a, b, share):
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)

tensors["slerp"] = torch.stack([slerp(noises[0][i], noises[1][i], share) for i, share in enumerate((.25, .6))])
save_file({name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}, HERE / "edit.safetensors")
spread = lambda name: f"{name} {tensors[name].abs().max():.3g}"
print(", ".join(spread(name) for name in tensors), [cumprod[k].item() for k in (300, 749, 899)])
