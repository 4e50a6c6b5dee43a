"""Writes open_clip/: toy-sized CLIPs as open_clip saves them, and their embeddings.

b: like OpenAI's ViT-B/32 (quick GELU), written by torch.save. g: like LAION's ViT-g/14 (heads of an odd width, feed-forward
layers that are not a whole multiple), safetensors in f16. Everything is computed in f64.
Run with open_clip 3.3 and torch 2.15: python make_open_clip.py
"""
import json, pathlib, shutil, torch
from open_clip.model import CLIP
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "open_clip"
shutil.rmtree(HERE, ignore_errors=True)
torch.manual_seed(5)
goldens = {}
TEXT = dict(context_length=9, vocab_size=60, width=16, heads=2, layers=2)
for name, config in {
    "b": dict(embed_dim=8, quick_gelu=True, vision_cfg=dict(image_size=16, layers=2, width=64, patch_size=8), text_cfg=TEXT | dict(width=64, heads=1)),
    "g": dict(embed_dim=12, vision_cfg=dict(image_size=12, layers=3, width=22, head_width=11, mlp_ratio=4.3637, patch_size=4), text_cfg=TEXT),
}.items():
    model = CLIP(**config).eval()
    for parameter in model.parameters():
        parameter.data = (parameter.data + 0.05 * torch.randn_like(parameter)).half().float()
    folder = HERE / name
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3}}, indent=1))
    state = {k: v.half() for k, v in model.state_dict().items()}
    if name == "b":
        torch.save(state | {"attn_mask": model.attn_mask}, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    model.double()
    side = config["vision_cfg"]["image_size"]
    images = torch.randn(2, 3, side, side)
    tokens = torch.randint(1, 58, (2, 9))
    tokens[0, 5], tokens[1, 8] = 59, 59
    tokens[0, 6:] = 0
    with torch.no_grad():
        # For the mask, which open_clip keeps in f32.
        model.attn_mask = model.attn_mask.double()
        goldens |= {f"{name}.images": images, f"{name}.tokens": tokens,
                    f"{name}.image_embeds": model.encode_image(images.double(), normalize=True).float(),
                    f"{name}.text_embeds": model.encode_text(tokens, normalize=True).float()}
save_file(goldens, HERE.with_suffix(".safetensors"))
