"""Writes pictures/*, image files of many kinds, and pictures.safetensors: the pixels that Pillow, diffusers and NumPy read from them.

NAME is the result of `diffusers.utils.load_image` for a file (upright, RGB), and NAME.stored that of pytorch-fid and clean-fid
(`Image.open(NAME).convert("RGB")`). CROP.WIDTHxHEIGHT and ROUND.UNIT are resized by diffusers for image to image.
Run with Pillow 13 and diffusers 0.42: python pictures.py
"""
import pathlib, shutil, struct, warnings, zlib
import numpy as np
from PIL import Image
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from safetensors.numpy import save_file

warnings.simplefilter("ignore")
HERE = pathlib.Path(__file__).parent
FILES = HERE / "pictures"
shutil.rmtree(FILES, ignore_errors=True); FILES.mkdir()
# Large blocks of colour, which JPEG keeps: 16 wide, 24 high, no symmetry.
colors = np.array([[[250, 20, 30], [20, 240, 40]], [[30, 40, 230], [240, 230, 20]], [[10, 10, 10], [200, 200, 200]]], np.uint8)
pixels = colors.repeat(8, 0).repeat(8, 1)
rgb = Image.fromarray(pixels)
alpha = Image.fromarray((np.arange(24 * 16).reshape(24, 16) % 256).astype(np.uint8))

def exif(orientation):
    exif = Image.Exif(); exif[0x0112] = orientation
    return exif
def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
def with_chunk(name, kind, data, last):
    """Inserts a chunk after the header of a PNG, or before its end."""
    file = FILES / name; bytes_ = file.read_bytes(); at = len(bytes_) - 12 if last else 33
    file.write_bytes(bytes_[:at] + chunk(kind, data) + bytes_[at:])

for orientation in range(1, 9):
    rgb.save(FILES / f"exif{orientation}.png", exif=exif(orientation))
    rgb.save(FILES / f"exif{orientation}.jpg", exif=exif(orientation), quality=100, subsampling=0)
rgb.save(FILES / "exif6.webp", exif=exif(6), lossless=True)
rgb.save(FILES / "exif8.tiff", tiffinfo={0x0112: 8}, compression="tiff_lzw")
rgb.save(FILES / "late.png"); with_chunk("late.png", b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"), True)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
rgb.save(FILES / "xmp.png"); with_chunk("xmp.png", b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, False)
rgb.save(FILES / "xmp.jpg", xmp=XMP, quality=100, subsampling=0)
rgb.save(FILES / "xmp.webp", xmp=XMP.replace(b'="6"', b">8<"), lossless=True)
rgb.save(FILES / "zero.jpg", exif=exif(0), quality=100, subsampling=0)

with_alpha = rgb.copy(); with_alpha.putalpha(alpha)
with_alpha.save(FILES / "rgba.png"); with_alpha.save(FILES / "rgba.webp", lossless=True, exact=True); with_alpha.save(FILES / "rgba.tiff")
with_alpha.save(FILES / "rgba.bmp")
with_alpha.convert("LA").save(FILES / "la.png")
palette = rgb.quantize(6)
palette.save(FILES / "palette.png"); palette.save(FILES / "palette-clear.png", transparency=0)
palette.save(FILES / "palette-soft.png", transparency=bytes([0, 100, 255, 30, 255, 255])); palette.save(FILES / "palette.bmp")
rgb.save(FILES / "rgb-clear.png", transparency=(250, 20, 30)); rgb.convert("L").save(FILES / "grey-clear.png", transparency=10)
opaque = rgb.copy(); opaque.putalpha(255); opaque.save(FILES / "opaque.png")
for suffix in ("png", "jpg", "tiff", "bmp", "pgm", "webp"): rgb.convert("L").save(FILES / f"grey.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
for suffix in ("png", "tiff", "bmp", "ppm"): rgb.convert("1").save(FILES / f"bits.{suffix}")
rgb.convert("L").quantize(4).save(FILES / "two-bits.png", bits=2)
for suffix in ("bmp", "ppm"): rgb.save(FILES / f"rgb.{suffix}")
for compression in ("raw", "tiff_deflate", "packbits", "tiff_lzw"): rgb.save(FILES / f"{compression}.tif", compression=compression)
(FILES / "maxval.pgm").write_bytes(b"P5\n# a comment\n4 2\n15\n" + bytes([0, 1, 2, 7, 8, 14, 15, 3]))
(FILES / "text.ppm").write_bytes(b"P3 2 2 255\n250 20 30  1 2 3\n4 5 6  255 255 255\n")
np.save(FILES / "array.npy", pixels)

read = {}
for file in sorted(FILES.iterdir()):
    upright, stored = (load_image(str(file)), Image.open(file).convert("RGB")) if file.suffix != ".npy" else [np.load(file)] * 2
    read[file.name], read[f"{file.name}.stored"] = (np.ascontiguousarray(picture) for picture in (upright, stored))

noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
read["noise"] = np.ascontiguousarray(noise)
for width, height in ((53, 37), (16, 16), (64, 16), (16, 64), (24, 17), (80, 80), (40, 28), (7, 3)):
    read[f"crop.{width}x{height}"] = np.ascontiguousarray(VaeImageProcessor().resize(noise, height, width, resize_mode="crop"))
for unit in (1, 2, 8, 16, 32):
    processor = VaeImageProcessor(vae_scale_factor=unit)
    height, width = processor.get_default_height_width(noise)
    read[f"round.{unit}"] = np.ascontiguousarray(processor.resize(noise, height, width))
save_file(read, HERE / "pictures.safetensors")

# Sixteen bits, which tools convert in three ways.
Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(HERE / "grey16.png")
