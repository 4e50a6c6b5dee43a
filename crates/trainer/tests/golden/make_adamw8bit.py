"""Writes adamw8bit.safetensors: the maps, updates and states of bitsandbytes' AdamW8bit on a CPU (bitsandbytes 0.50.2).

The updates are also computed by the published rule (Dettmers et al., arXiv 2110.02861) in plain PyTorch, and compared: nearest
code in blocks of 256, each scaled by its largest magnitude.
"""
import pathlib
import bitsandbytes as bnb
import torch
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file

SIZE, STEPS, BLOCK = 5000, 6, 256
RATE, BETAS, EPSILON, DECAY = 1e-2, (0.9, 0.99), 1e-8, 0.1
torch.manual_seed(0)
maps = [create_dynamic_map(signed=True), create_dynamic_map(signed=False)]
tensors = dict(signed=maps[0].clone(), unsigned=maps[1].clone())

def quantize(values, codes):
    blocks = torch.nn.functional.pad(values, (0, -SIZE % BLOCK)).reshape(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    bounds = (codes[1:] + codes[:-1]) / 2
    found = torch.bucketize(torch.where(scales > 0, blocks / scales, blocks), bounds)
    return found.reshape(-1)[:SIZE].to(torch.uint8), scales[:, 0]

def values(codes, scales, map):
    return map[codes.int()] * scales.repeat_interleave(BLOCK)[:SIZE]

weight = torch.nn.Parameter(torch.randn(SIZE))
optimizer = bnb.optim.AdamW8bit([weight], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
tensors["weight.0"] = weight.detach().clone()
moments = [(torch.zeros(SIZE, dtype=torch.uint8), torch.zeros(-(-SIZE // BLOCK)))] * 2
scale = 10 ** torch.linspace(-6, 1, -(-SIZE // BLOCK)).repeat_interleave(BLOCK)[:SIZE]
for step in range(1, STEPS + 1):
    # Gradients of many magnitudes, some of them zero, a whole block of zeros.
    grad = torch.randn(SIZE) * scale * (torch.rand(SIZE) > 0.1)
    grad[512:768] = 0
    first, second = (values(*moment, map) for moment, map in zip(moments, maps))
    first, second = first * BETAS[0] + grad * (1 - BETAS[0]), second * BETAS[1] + grad**2 * (1 - BETAS[1])
    corrections = [1 - beta**step for beta in BETAS]
    expected = weight.detach() * (1 - RATE * DECAY) - RATE / corrections[0] * first / ((second / corrections[1]).sqrt() + EPSILON)
    moments = [quantize(moment, map) for moment, map in zip((first, second), maps)]
    weight.grad = grad.clone()
    optimizer.step()
    state = optimizer.state[weight]
    off = [(codes != state[f"state{n}"]).float().mean().item() for n, (codes, _) in enumerate(moments, 1)]
    print(f"step {step}: weights within {(weight - expected).abs().max():.1e}, codes that differ from the rule {off}")
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-5)
    moments = [(state[f"state{n}"].clone(), state[f"absmax{n}"].clone()) for n in (1, 2)]
    tensors[f"grad.{step}"], tensors[f"weight.{step}"] = grad, weight.detach().clone()
    for n, (codes, scales) in enumerate(moments, 1):
        tensors[f"codes{n}.{step}"], tensors[f"scales{n}.{step}"] = codes, scales
save_file(tensors, pathlib.Path(__file__).with_name("adamw8bit.safetensors"))
