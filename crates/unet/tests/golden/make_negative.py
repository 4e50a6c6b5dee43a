"""Writes negative.safetensors: a small UNet2DConditionModel of diffusers with a negative prompt in its cross-attention.

Weights and inputs are rounded to f32, everything is then computed in f64 and stored as f32. `limited` are the values of
NAG with which most tokens reach the limit, `free` those with which none does.
Run with diffusers 0.42 and torch 2.15: python make_negative.py
"""
import json, pathlib, torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from negative_attention import install, nag, nasa

HERE = pathlib.Path(__file__).parent
torch.manual_seed(1)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=[8, 16], down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2,
    layers_per_block=1, attention_head_dim=[1, 2], cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4).eval()
for parameter in unet.parameters():  # norms would be ones and zeros
    parameter.data += 0.1 * torch.randn_like(parameter)
for name, parameter in unet.named_parameters():  # attentions that weigh
    if ".attn2." in name:
        parameter.data *= 3
tensors = {f"weights.{k}": v.clone() for k, v in unet.state_dict().items()}
tensors |= {"latents": torch.randn(2, 4, 8, 8), "timesteps": torch.tensor([999.0, 499.0]), "context": torch.randn(2, 5, 12),
            "negative": torch.randn(2, 7, 12), "target": torch.randn(2, 4, 8, 8)}
unet = unet.double()
inputs = {k: tensors[k].double() for k in ("latents", "timesteps", "context", "negative", "target")}

def run(name, combine, negative):
    if combine:
        install(unet, negative, combine)
    else:
        unet.set_default_attn_processor()
    latents = inputs["latents"].clone().requires_grad_()
    unet.zero_grad()
    out = unet(latents, inputs["timesteps"], inputs["context"]).sample
    (out * inputs["target"]).sum().backward()
    key = unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight").grad
    tensors.update({f"{name}.out": out.detach().float(), f"{name}.latents_grad": latents.grad.float(), f"{name}.to_k_grad": key.float()})

negative = inputs["negative"]
run("plain", None, negative)
run("nasa", nasa(0.7), negative)
run("nasa_for_all", nasa(0.7), negative[:1])
run("nag_free", nag(0.5, 20.0, 0.7), negative)
run("nag_limited", nag(4.0, 1.5, 0.6), negative)

for name in ("nasa", "nag_free", "nag_limited"):
    difference = (tensors[f"{name}.out"] - tensors["plain.out"]).abs().max() / tensors["plain.out"].abs().max()
    print(f"{name}: differs from the plain output by {difference:.3f} of its largest magnitude")
    assert difference > 0.01
save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "negative.safetensors", metadata={"config": json.dumps(dict(unet.config))})
