"""Writes float8.safetensors: the values of all 256 bytes in PyTorch's 8-bit floating-point types.

Run with torch 2.15: python make_float8.py
"""
import pathlib, torch
from safetensors.torch import save_file

TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
         "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz}
values = {name: torch.arange(256, dtype=torch.uint8).view(dtype).float() for name, dtype in TYPES.items()}
save_file(values, pathlib.Path(__file__).parent / "float8.safetensors")
