"""Writes kl_*.safetensors and tiny_*.safetensors: small diffusers autoencoders with inputs and outputs.

Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42 and torch 2.15: python make.py
"""
import json, pathlib, torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent

def perturbed(model):
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()

def store(name, model, tensors):
    weights = {f"weights.{k}": v.float() for k, v in model.state_dict().items()}
    save_file({k: v.float().contiguous() for k, v in (tensors | weights).items()}, HERE / f"{name}.safetensors",
              metadata={"config": json.dumps(dict(model.config))})

KL = {
    "kl_two_levels": dict(block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4, sample_size=16,
                          down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2),
    "kl_three_levels": dict(block_out_channels=[4, 8, 8], layers_per_block=2, norm_num_groups=2, sample_size=16,
                            latent_channels=3, scaling_factor=0.5,
                            down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3),
}
for name, config in KL.items():
    torch.manual_seed(0)
    vae = perturbed(AutoencoderKL(**config)).double()
    images = (torch.rand(2, 3, 16, 8) * 2 - 1)
    latents = torch.randn(2, config.get("latent_channels", 4), 4, 4)
    posterior = vae.encode(images.double()).latent_dist
    noise = torch.randn(posterior.mean.shape)
    scale = vae.config.scaling_factor
    sample = (posterior.mean + posterior.std * noise.double()) * scale
    decoded = vae.decode(latents.double() / scale).sample
    store(name, vae, dict(images=images, latents=latents, noise=noise, mean=posterior.mean * scale, sample=sample,
                          decoded=decoded))

TINY = {
    "tiny_two_stages": dict(encoder_block_out_channels=[8, 8], decoder_block_out_channels=[8, 8],
                            num_encoder_blocks=[1, 2], num_decoder_blocks=[2, 1]),
    "tiny_four_stages": dict(encoder_block_out_channels=[4] * 4, decoder_block_out_channels=[6] * 4,
                             num_encoder_blocks=[1, 1, 1, 1], num_decoder_blocks=[1, 1, 1, 1], latent_channels=3),
}
for name, config in TINY.items():
    torch.manual_seed(0)
    vae = perturbed(AutoencoderTiny(**config)).double()
    images = (torch.rand(2, 3, 16, 8) * 2 - 1)
    latents = torch.randn(2, config.get("latent_channels", 4), 3, 2) * 2
    latents64 = latents.double().requires_grad_()
    decoded = vae.decode(latents64).sample
    weight = torch.randn(decoded.shape)
    (decoded * weight.double()).sum().backward()
    store(name, vae, dict(images=images, latents=latents, encoded=vae.encode(images.double()).latents,
                          decoded=decoded, weight=weight, latents_grad=latents64.grad))
