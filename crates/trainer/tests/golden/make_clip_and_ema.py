"""Writes clip_loss.safetensors, the clamped CLIP loss through a tiny decoder computed with PyTorch's autograd, and
ema.safetensors, the averages of diffusers' EMAModel.

Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42, transformers 5.23 and torch 2.15: python make_clip_and_ema.py
"""
import json, pathlib, torch
from diffusers import AutoencoderTiny
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

HERE = pathlib.Path(__file__).parent
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().reshape(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().reshape(1, 3, 1, 1)
SIZES = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)

torch.manual_seed(0)
clip = CLIPModel(CLIPConfig(
    text_config=SIZES | dict(vocab_size=64, max_position_embeddings=10, eos_token_id=63),
    vision_config=SIZES | dict(image_size=16, patch_size=4), projection_dim=8)).eval()
decoder = AutoencoderTiny(
    encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3, num_encoder_blocks=(1, 1, 1),
    num_decoder_blocks=(1, 2, 1)).eval()
for parameter in [*clip.parameters(), *decoder.parameters()]:
    parameter.data += 0.1 * torch.randn_like(parameter)
latents, texts = torch.randn(3, 4, 8, 8), torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
weights = {f"clip.{k}": v.clone() for k, v in clip.state_dict().items()}
weights |= {f"decoder.{k}": v.clone() for k, v in decoder.state_dict().items()}

leaf = latents.double().requires_grad_()
images = (decoder.double().decode(leaf).sample + 1) / 2
images = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic", antialias=True)
embeds = clip.double().get_image_features((images - MEAN) / STD)
embeds = getattr(embeds, "pooler_output", embeds)
cosine = (torch.nn.functional.normalize(embeds, dim=1) * texts.double()).sum(1)
ordered = cosine.sort().values
threshold = ((ordered[1] + ordered[2]) / 2).item()  # one of the three is beyond the threshold
loss = (threshold - cosine).clamp(min=0).mean()
loss.backward()
assert (leaf.grad.flatten(1).abs().amax(1) > 0).sum() == 2
tensors = dict(latents=latents, texts=texts, loss=loss.reshape(1), latents_grad=leaf.grad) | weights
metadata = dict(clip=json.dumps(clip.config.to_dict(), default=str), decoder=json.dumps(dict(decoder.config)), threshold=repr(threshold))
save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, HERE / "clip_loss.safetensors", metadata=metadata)

torch.manual_seed(1)
weight = torch.nn.Parameter(torch.randn(5).double())
ema, tensors = EMAModel([weight], decay=0.3), {"weight.0": weight.detach().clone()}
for step in range(1, 8):  # the warm-up's decays are 0, 2/11, 3/12, 4/13 …, the limit is reached at the fourth
    weight.data = torch.randn(5).double()
    ema.step([weight])
    tensors |= {f"weight.{step}": weight.detach().clone(), f"average.{step}": ema.shadow_params[0].clone()}
save_file({k: v.float() for k, v in tensors.items()}, HERE / "ema.safetensors")
