"""Writes step.safetensors: a complete step of SwiftBrush v2 on small U-Nets, computed with PyTorch's autograd and AdamW.

Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42, peft 0.21 and torch 2.15: python make.py
"""
import copy, json, pathlib, torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
CONFIG = dict(
    sample_size=8, block_out_channels=[8, 16], down_block_types=["CrossAttnDownBlock2D"] * 2,
    up_block_types=["CrossAttnUpBlock2D"] * 2, layers_per_block=1, attention_head_dim=[1, 2],
    cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4)
GUIDANCE, RATE, FAKE_RATE, DECAY = 4.5, 1e-3, 1e-2, 0.01
tensors = {}

def unet(seed, name):
    torch.manual_seed(seed)
    model = UNet2DConditionModel(**CONFIG).eval()
    tensors.update({f"{name}.{k}": v.clone() for k, v in model.state_dict().items()})
    return model

teacher, student, fake = unet(0, "teacher"), unet(1, "student"), unet(0, "teacher")
config = dict(teacher.config)
fake.requires_grad_(False)
fake.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
for name, parameter in fake.named_parameters():
    if "lora_" in name:
        parameter.data = torch.randn_like(parameter) * 0.3
        module, factor = name.split(".lora_")
        tensors[f"lora.unet.{module}.lora_{factor[0]}.weight"] = parameter.data.clone()
for model in (teacher, student, fake):
    model.double()
teacher.requires_grad_(False)

abar = torch.from_numpy(__import__("numpy").cumprod(1 - __import__("numpy").linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
alpha = lambda t: abar[t].sqrt().reshape(-1, 1, 1, 1)
sigma = lambda t: (1 - abar[t]).sqrt().reshape(-1, 1, 1, 1)
torch.manual_seed(2)
noise, renoise, fake_noise = (torch.randn(2, 4, 8, 8) for _ in range(3))
t, fake_t, T = torch.tensor([20, 700]), torch.tensor([3, 950]), torch.tensor([999, 999])
context, null = torch.randn(2, 5, 12), torch.randn(1, 5, 12)
tensors |= dict(noise=noise, renoise=renoise, fake_noise=fake_noise, timesteps=t, fake_timesteps=fake_t, context=context,
                null_context=null)
noise, renoise, fake_noise, context, null = (x.double() for x in (noise, renoise, fake_noise, context, null))
null = null.expand(2, -1, -1)

x0 = (noise - sigma(T) * student(noise, T, context).sample) / alpha(T)
with torch.no_grad():
    xt = alpha(t) * x0 + sigma(t) * renoise
    def guided(model):
        cond, uncond = model(xt, t, context).sample, model(xt, t, null).sample
        return uncond + GUIDANCE * (cond - uncond)
    g = sigma(t) ** 2 * (guided(teacher) - guided(fake))
    target = x0 - g
loss = 0.5 * ((x0 - target) ** 2).mean()

def update(model, loss, rate, name):
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=DECAY)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    for step in (1, 2):  # twice with the same gradient, because the second update has different bias corrections
        optimizer.step()
        for k, p in parameters.items():
            k = k.replace(".base_layer", "").replace(".lora_A.default.weight", ".weight.lora.b").replace(".lora_B.default.weight", ".weight.lora.a")
            tensors[f"{name}{step}.{k}"] = p.detach().clone()
    tensors[f"{name}.norm"] = norm.reshape(1)

update(student, loss, RATE, "student_after")
xt = alpha(fake_t) * x0.detach() + sigma(fake_t) * fake_noise
fake_loss = ((alpha(fake_t) * (fake(xt, fake_t, context).sample - fake_noise)) ** 2).mean()
update(fake, fake_loss, FAKE_RATE, "fake_after")
tensors |= dict(latents=x0, gradient=g, loss=loss.reshape(1), fake_loss=fake_loss.reshape(1))
tensors = {k: (v if v.dtype == torch.int64 else v.detach().float()).contiguous() for k, v in tensors.items()}
save_file(tensors, HERE / "step.safetensors", metadata={"config": json.dumps(config)})
