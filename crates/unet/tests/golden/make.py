"""Writes unet_*.safetensors: small diffusers UNet2DConditionModels with their inputs and outputs.

Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42 and torch 2.15: python make.py
"""
import json, pathlib, torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
CONFIGS = {
    # A small Stable Diffusion 2.x: linear projections, heads per block.
    "unet_linear": (dict(
        sample_size=8, block_out_channels=[8, 16], down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2, layers_per_block=1, attention_head_dim=[1, 2],
        cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4), (8, 8)),
    # A small Stable Diffusion 1.x: convolutions, one number of heads, a block without attention, two layers;
    # a size that is not divisible by four.
    "unet_conv": (dict(
        sample_size=8, block_out_channels=[8, 8, 16],
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], layers_per_block=2,
        attention_head_dim=4, cross_attention_dim=10, norm_num_groups=2, norm_eps=1e-4,
        flip_sin_to_cos=False, freq_shift=1), (6, 10)),
}

for name, (config, (height, width)) in CONFIGS.items():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval()
    for parameter in unet.parameters():  # norms would be ones and zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    weights = {k: v.clone() for k, v in unet.state_dict().items()}
    latents = torch.randn(2, 4, height, width)
    timesteps = torch.tensor([999.0, 17.5])
    context = torch.randn(2, 5, config["cross_attention_dim"])
    target = torch.randn(2, 4, height, width)
    unet = unet.double()
    latents64 = latents.double().requires_grad_()
    out = unet(latents64, timesteps.double(), context.double()).sample
    (out * target.double()).sum().backward()
    tensors = {"latents": latents, "timesteps": timesteps, "context": context, "target": target,
               "out": out.detach().float(), "latents_grad": latents64.grad.float()}
    tensors |= {f"weights.{k}": v for k, v in weights.items()}
    for k in ["conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
              "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
              "up_blocks.0.resnets.0.conv_shortcut.weight", "down_blocks.0.attentions.0.norm.weight",
              "time_embedding.linear_1.weight", "up_blocks.1.resnets.0.time_emb_proj.bias"]:
        tensors[f"grads.{k}"] = unet.get_parameter(k).grad.float()
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / f"{name}.safetensors",
              metadata={"config": json.dumps(dict(unet.config))})
    print(name, sum(v.numel() for v in weights.values()), "parameters")
