"""Writes settings.safetensors: gradients and losses of a step with settings other than the paper's, on the networks
and inputs of step.safetensors, computed with PyTorch in f64.

The conversion from velocity to noise is diffusers' (DDIMScheduler.step), and the normalised gradient is DMD2's
(compute_distribution_matching_loss). Run make.py first, with the same versions: python make_settings.py
"""
import json, pathlib, torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
step = load_file(HERE / "step.safetensors")
with safe_open(HERE / "step.safetensors", "pt") as file:
    CONFIG = json.loads(file.metadata()["config"])

def unet(name):
    model = UNet2DConditionModel.from_config(CONFIG)
    model.load_state_dict({k.removeprefix(f"{name}."): v for k, v in step.items() if k.startswith(f"{name}.")})
    return model.eval().requires_grad_(False)

teacher, student, fake = unet("teacher"), unet("student"), unet("teacher")
fake.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
for name, parameter in fake.named_parameters():
    if "lora_" in name:
        parameter.data = step["lora.unet." + name.replace(".default", "")]
for model in (teacher, student, fake):
    model.double()

scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                          clip_sample=False)
abar = torch.from_numpy(__import__("numpy").cumprod(1 - __import__("numpy").linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
assert (scheduler.alphas_cumprod.double() - abar).abs().max() < 1e-6
alpha = lambda t: abar[t].sqrt().reshape(-1, 1, 1, 1)
sigma = lambda t: (1 - abar[t]).sqrt().reshape(-1, 1, 1, 1)
noise, renoise, fake_noise, context, null, x0 = (
    step[k].double() for k in ("noise", "renoise", "fake_noise", "context", "null_context", "latents"))
t, fake_t, T = step["timesteps"], step["fake_timesteps"], torch.tensor([999, 999])
null = null.expand(2, -1, -1)
scale = lambda values: torch.tensor(values).double().reshape(-1, 1, 1, 1)

def predicted(model, x, t, context, kind):
    output = model(x, t, context).sample
    return output if kind == "epsilon" else alpha(t) * output + sigma(t) * x  # diffusers: pred_epsilon of v_prediction

@torch.no_grad()
def teachers(kind, teacher_scale, fake_scale):
    xt = alpha(t) * x0 + sigma(t) * renoise
    def guided(model, s):
        cond, uncond = (predicted(model, xt, t, c, kind) for c in (context, null))
        return uncond + scale(s) * (cond - uncond)
    return xt, guided(teacher, teacher_scale), guided(fake, fake_scale)

def gradient(*settings):
    _, real, fake = teachers(*settings)
    return sigma(t) ** 2 * (real - fake)

def normalized(*settings):
    xt, real, fake = teachers(*settings)
    clean = lambda eps: (xt - sigma(t) * eps) / alpha(t)
    p_real, p_fake = x0 - clean(real), x0 - clean(fake)
    return (p_real - p_fake) / p_real.abs().mean(dim=[1, 2, 3], keepdim=True)

xt = alpha(fake_t) * x0 + sigma(fake_t) * fake_noise
with torch.no_grad():
    loss = ((alpha(fake_t) * (predicted(fake, xt, fake_t, context, "v_prediction") - fake_noise)) ** 2).mean()
    # x0 of velocity is α·x − σ·v.
    latents = alpha(T) * noise - sigma(T) * student(noise, T, context).sample
tensors = dict(
    velocity=gradient("v_prediction", [4.5, 4.5], [4.5, 4.5]), per_sample=gradient("epsilon", [0.5, 3.0], [1.0, 1.0]),
    cut=gradient("epsilon", [4.5, 1.0], [1.0, 1.0]), normalized=normalized("epsilon", [4.5, 4.5], [1.0, 1.0]),
    velocity_fake_loss=loss.reshape(1), velocity_latents=latents)
save_file({k: v.float().contiguous() for k, v in tensors.items()}, HERE / "settings.safetensors")
