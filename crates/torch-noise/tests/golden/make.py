"""Writes torch.safetensors: draws of PyTorch's CPU generator, several in sequence for each seed.

Run in the folder of this file with PyTorch 2.15 (x86 with AVX2) and safetensors.
"""

import torch
from safetensors.torch import save_file

SEEDS = [0, 42, 2**32 + 5, 2**64 - 1]
# Fewer than 16 values are drawn pair by pair, and an odd count keeps half a pair for the next such draw.
COUNTS = [3, 16, 1, 20, 15, 5_003]

tensors = {}
for seed in SEEDS:
    for name, draw in [("rand", torch.rand), ("randn", torch.randn)]:
        generator = torch.Generator("cpu").manual_seed(seed)
        for i, count in enumerate(COUNTS):
            tensors[f"{name}.{seed}.{i}"] = draw(count, generator=generator)
save_file(tensors, "torch.safetensors", metadata={"torch": torch.__version__})
