"""Writes regression.safetensors: regression losses of the student and their gradients, and the measures of the watcher, on the
networks and inputs of step.safetensors, computed with PyTorch in f64.

Run make.py first, with the same versions: python make_regression.py
"""
import json, pathlib, numpy, torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import huber_loss, mse_loss

HERE = pathlib.Path(__file__).parent
DELTA, TIMESTEP = 0.5, 300
PARAMETERS = ["conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "conv_out.bias"]
step = load_file(HERE / "step.safetensors")
with safe_open(HERE / "step.safetensors", "pt") as file:
    CONFIG = json.loads(file.metadata()["config"])

def unet(name):
    model = UNet2DConditionModel.from_config(CONFIG)
    model.load_state_dict({k.removeprefix(f"{name}."): v for k, v in step.items() if k.startswith(f"{name}.")})
    return model.eval()

student, teacher, fake = unet("student").double(), unet("teacher").double(), unet("teacher")
fake.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
for name, parameter in fake.named_parameters():
    if "lora_" in name:
        parameter.data = step["lora.unet." + name.replace(".default", "")]
fake.double()

abar = torch.from_numpy(numpy.cumprod(1 - numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
alpha = lambda t: abar[t].sqrt().reshape(-1, 1, 1, 1)
sigma = lambda t: (1 - abar[t]).sqrt().reshape(-1, 1, 1, 1)
noise, renoise, context, x0 = (step[k].double() for k in ("noise", "renoise", "context", "latents"))
T = torch.tensor([999, 999])
torch.manual_seed(3)
target = torch.randn(2, 4, 8, 8)
tensors, target = {"target": target.clone()}, target.double()

def generated(x):
    return (x - sigma(T) * student(x, T, context).sample) / alpha(T)

real = alpha(T) * target + sigma(T) * noise
for name, x, loss in [("l2", noise, lambda x: mse_loss(x, target)), ("huber", noise, lambda x: huber_loss(x, target, delta=DELTA)),
                      ("denoise", real, lambda x: mse_loss(x, target))]:
    student.zero_grad()
    value = loss(generated(x))
    value.backward()
    tensors[name] = value.detach().reshape(1)
    grads = dict(student.named_parameters())
    tensors |= {f"{name}.{k}": grads[k].grad.clone() for k in PARAMETERS}

with torch.no_grad():
    t = torch.tensor([TIMESTEP, TIMESTEP])
    xt = alpha(t) * x0 + sigma(t) * renoise
    tensors["teacher_distance"] = mse_loss(teacher(xt, t, context).sample, fake(xt, t, context).sample).reshape(1)
    three = torch.cat([x0, target[:1]]).flatten(1)
    tensors["pairwise_distance"] = (torch.pdist(three) / three.shape[1] ** 0.5).mean().reshape(1)
save_file({k: v.float().contiguous() for k, v in tensors.items()}, HERE / "regression.safetensors")
