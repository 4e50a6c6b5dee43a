"""Writes rewards.safetensors and rewards/: the scores of HPSv2 and PickScore with toy-sized networks, and the gradients of their
clamped losses through a tiny decoder.

hps: as https://github.com/tgxs002/HPSv2 (hpsv2/img_score.py) computes it, with open_clip and a checkpoint with a `state_dict`;
pick_score: as https://github.com/yuvalkirstain/PickScore (README) computes it, with transformers.
Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42, open_clip 3.3, transformers 5.23 and torch 2.15: python make_rewards.py
"""
import json, pathlib, shutil, torch
from diffusers import AutoencoderTiny
from open_clip.model import CLIP
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

HERE = pathlib.Path(__file__).parent
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().reshape(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().reshape(1, 3, 1, 1)
SIZES = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu")
# The vocabulary of crates/clip/tests/golden/tokenizer, whose last token ends a text.
WORDS, LENGTH = 3514, 77

def perturbed(network):
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()

shutil.rmtree(HERE / "rewards", ignore_errors=True)
torch.manual_seed(0)
config = dict(embed_dim=8, vision_cfg=dict(image_size=16, layers=2, width=12, head_width=6, mlp_ratio=2.0, patch_size=4),
              text_cfg=dict(context_length=LENGTH, vocab_size=WORDS, width=12, heads=2, layers=2, mlp_ratio=2.0))
hps = perturbed(CLIP(**config))
folder = HERE / "rewards/hps"
folder.mkdir(parents=True)
(folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}, indent=1))
torch.save({"state_dict": hps.state_dict()}, folder / "open_clip_pytorch_model.bin")

pick_score = perturbed(CLIPModel(CLIPConfig(
    text_config=SIZES | dict(vocab_size=WORDS, max_position_embeddings=LENGTH, eos_token_id=WORDS - 1),
    vision_config=SIZES | dict(image_size=16, patch_size=4), projection_dim=8)))
pick_score.save_pretrained(HERE / "rewards/pick_score")

decoder = perturbed(AutoencoderTiny(
    encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3, num_encoder_blocks=(1, 1, 1),
    num_decoder_blocks=(1, 2, 1)))
decoder.save_pretrained(HERE / "rewards/taesd")

latents = torch.randn(3, 4, 8, 8)
# What the tokenizer makes of "a", "b" and "c d": start, words, end, and ends as padding.
vocabulary = json.loads((HERE / "../../../clip/tests/golden/tokenizer/vocab.json").read_text())
tokens = torch.full((3, LENGTH), WORDS - 1)
for row, words in enumerate(["a", "b", "c d"]):
    ids = [WORDS - 2, *(vocabulary[f"{word}</w>"] for word in words.split())]
    tokens[row, :len(ids)] = torch.tensor(ids)
tensors, metadata = dict(latents=latents), {}
hps.double(), pick_score.double(), decoder.double()
hps.attn_mask = hps.attn_mask.double()

def hps_scores(images):
    image_features = hps.encode_image(images, normalize=True)
    text_features = hps.encode_text(tokens, normalize=True)
    return torch.diagonal(image_features @ text_features.T)

def pick_scores(images):
    image_embs = pick_score.get_image_features(pixel_values=images)
    image_embs = getattr(image_embs, "pooler_output", image_embs)
    image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
    text_embs = pick_score.get_text_features(input_ids=tokens)
    text_embs = getattr(text_embs, "pooler_output", text_embs)
    text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
    return torch.diagonal(pick_score.logit_scale.exp() * (text_embs @ image_embs.T))

for name, scores in dict(hps=hps_scores, pick_score=pick_scores).items():
    leaf = latents.double().requires_grad_()
    images = (decoder.decode(leaf).sample + 1) / 2
    images = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    score = scores((images - MEAN) / STD)
    ordered = score.sort().values
    threshold = ((ordered[1] + ordered[2]) / 2).item()  # one of the three is beyond the threshold
    loss = (threshold - score).clamp(min=0).mean()
    loss.backward()
    assert (leaf.grad.flatten(1).abs().amax(1) > 0).sum() == 2
    tensors |= {f"{name}.scores": score, f"{name}.loss": loss.reshape(1), f"{name}.latents_grad": leaf.grad}
    metadata[f"{name}.threshold"] = repr(threshold)
save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, HERE / "rewards.safetensors", metadata=metadata)
