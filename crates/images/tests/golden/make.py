"""Writes pillow.safetensors and bilinear.safetensors: images, resized by Pillow, PyTorch and torch-fidelity.

Run with Pillow 13, torch, torch-fidelity 0.4: python make.py
"""
import pathlib, numpy as np, torch
from PIL import Image
from safetensors.numpy import save_file
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(0)
# Widths and heights: one pixel, odd, up, down, one axis alone, extreme aspects, large factors.
CASES = [((1, 1), (3, 2)), ((2, 2), (1, 1)), ((1, 9), (5, 4)), ((7, 5), (7, 5)), ((7, 5), (13, 5)), ((7, 5), (7, 2)),
         ((17, 13), (5, 7)), ((16, 16), (31, 33)), ((3, 211), (40, 3)), ((199, 2), (3, 9)), ((64, 48), (20, 20)),
         ((101, 67), (8, 64)), ((40, 40), (1, 1)), ((5, 4), (37, 50)), ((12, 20), (7, 12))]
FILTERS = {"box": Image.BOX, "bilinear": Image.BILINEAR, "hamming": Image.HAMMING, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
pillow, bilinear = {}, {}
for index, ((width, height), (to_width, to_height)) in enumerate(CASES):
    # Hard edges between black and white, where filters overshoot, and noise.
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hard = rng.random((height, width, 1)) < 0.5
    picture = np.where(hard, (picture > 127) * np.uint8(255), picture).astype(np.uint8)
    floats = (rng.normal(size=(height, width, 3)) * 100).astype(np.float32)
    pillow[f"{index}.bytes"], pillow[f"{index}.floats"] = picture, floats
    for name, kind in FILTERS.items():
        size = (to_width, to_height)
        pillow[f"{index}.bytes.{name}"] = np.asarray(Image.fromarray(picture).resize(size, kind))
        channels = [np.asarray(Image.fromarray(floats[:, :, c]).resize(size, kind)) for c in range(3)]
        pillow[f"{index}.floats.{name}"] = np.ascontiguousarray(np.stack(channels, -1))
    x = torch.tensor(picture).permute(2, 0, 1)[None].float()
    centres = torch.nn.functional.interpolate(x, size=(to_height, to_width), mode="bilinear", align_corners=False)
    corners = interpolate_bilinear_2d_like_tensorflow1x(x, size=(to_height, to_width), align_corners=False)
    for name, value in (("centres", centres), ("corners", corners)):
        bilinear[f"{index}.{name}"] = np.ascontiguousarray(value[0].permute(1, 2, 0).numpy())
save_file(pillow, HERE / "pillow.safetensors")
save_file(bilinear, HERE / "bilinear.safetensors")
Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), mode="CMYK").save(HERE / "cmyk.jpg")
frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
for name in ("animated.webp", "animated.png"):
    frames[0].save(HERE / name, save_all=True, append_images=frames[1:], duration=100)
