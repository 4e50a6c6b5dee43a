"""Measures how far the denoiser's output is off when its layers compute in int8, with scales per tensor and per output and token.

    python int8_error.py FOLDER

FOLDER is a model in diffusers' layout. Linear layers and convolutions are quantised as swiftbrush does (except the first and last
convolution and the timestep layers), with codes from -127 to 127, and their products are summed in f32. Attention is in f32.
Prints relative errors (root mean squares) against PyTorch in f32, for the same random latents and states at timestep 999.
"""
import json, pathlib, sys
import torch
from diffusers import UNet2DConditionModel

KEPT = ("conv_in", "conv_out", "time_embedding", "time_emb_proj")

def fake(x, axes):
    """Values rounded to int8, with a scale for all values along these axes."""
    scale = x.abs().amax(axes, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale) * scale

def quantized(network, per_tensor):
    """The network's layers, with weights and inputs rounded; returns what undoes it."""
    restore = []
    for name, layer in network.named_modules():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) or any(kept in name for kept in KEPT):
            continue
        weight = layer.weight.data
        axes = tuple(range(weight.dim()))
        layer.weight.data = fake(weight, axes if per_tensor else axes[1:])
        channel = -1 if isinstance(layer, torch.nn.Linear) else 1
        def before(_, inputs, channel=channel):
            x = inputs[0]
            return (fake(x, tuple(range(x.dim())) if per_tensor else channel), *inputs[1:])
        hook = layer.register_forward_pre_hook(before)
        restore.append(lambda layer=layer, weight=weight, hook=hook: (setattr(layer.weight, "data", weight), hook.remove()))
    return restore

folder = pathlib.Path(sys.argv[1])
network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32).eval()
config = json.loads((folder / "unet/config.json").read_text())
torch.manual_seed(0)
latents = torch.randn(1, config["in_channels"], config["sample_size"], config["sample_size"])
states = torch.randn(1, 77, config["cross_attention_dim"])

@torch.no_grad()
def call():
    return network(latents, 999, states).sample.double()

exact = call()
for name, per_tensor in (("a scale per output and token", False), ("a scale per tensor", True)):
    restore = quantized(network, per_tensor)
    error = (call() - exact).norm() / exact.norm()
    print(f"{name:30} {len(restore)} layers  {error:.5f}", flush=True)
    for undo in restore:
        undo()
