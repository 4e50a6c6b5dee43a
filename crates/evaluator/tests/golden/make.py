"""Writes networks.safetensors and the shapes of the networks' tensors: images, and their features from pytorch-fid,
torch-fidelity, clean-fid, efficientnet_lite_pytorch and open_clip's transforms.

The weights are too large to store: tensor i of a network, in order of names, is drawn with seed i, and the tests draw the same
values. Networks run in f64, so that the comparison does not depend on the rounding of the reference.
Run with pytorch-fid 0.3, torch-fidelity 0.4, clean-fid 0.1.35, open_clip 3.3, efficientnet_lite_pytorch 0.1:
python make.py
"""
import os, pathlib
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np, torch
from PIL import Image
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)

def draw(shapes):
    """Random weights of a realistic magnitude, by name."""
    weights = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(index))
        if name.endswith("running_var"):
            normal = normal.square() * 0.5 + 0.5
        elif len(shape) == 1:
            normal = normal * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        else:
            fan = int(np.prod(shape[1:]))
            normal = normal * (2.0 / fan) ** 0.5
        weights[name] = normal
    return weights

def shapes(module, file):
    """Shapes of a network's tensors by name, which are also written for the tests."""
    of = {n: tuple(t.shape) for n, t in module.state_dict().items() if t.is_floating_point()}
    lines = [f"{n} {','.join(map(str, s or (1,)))}\n" for n, s in sorted(of.items())]
    (HERE / file).write_text("".join(lines))
    return of

def load(module, weights):
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected and all(n.endswith("num_batches_tracked") for n in missing), (missing, unexpected)
    return module.double().eval()

# Smooth images, where small differences between grey levels matter, with noise on top; not square.
rng = np.random.default_rng(0)
def picture(height, width):
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [127 + 90 * np.sin(x * rng.normal() + y * rng.normal() + rng.normal()) for _ in range(3)]
    return np.clip(np.stack(waves, -1) + rng.normal(size=(height, width, 3)) * 20, 0, 255).astype(np.uint8)
pictures = [picture(64, 48), picture(90, 90)]
out = {f"picture.{i}": p for i, p in enumerate(pictures)}
tensors = [torch.tensor(p).permute(2, 0, 1)[None] for p in pictures]
rows = lambda f: np.concatenate([f(t).numpy() for t in tensors]).astype(np.float32)

import pytorch_fid.inception as pf
import torch_fidelity.feature_extractor_inceptionv3 as tf
# Both would download their weights.
tf.load_state_dict_from_url = lambda *a, **k: None
original = torch.nn.Module.load_state_dict
torch.nn.Module.load_state_dict = lambda self, state, *a, **k: None if state is None else original(self, state, *a, **k)
fidelity = tf.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
weights = draw(shapes(fidelity, "inception.txt"))
load(fidelity, weights)
fidelity.feature_extractor_internal_dtype = torch.float64
pf.load_state_dict_from_url = lambda *a, **k: None
inception = pf.fid_inception_v3()
load(inception, weights)
pf.fid_inception_v3 = lambda: inception
pytorch_fid = pf.InceptionV3([3]).double().eval()

with torch.no_grad():
    out["inception.pytorch-fid"] = rows(lambda t: pytorch_fid(t.double() / 255)[0][:, :, 0, 0])
    both = [fidelity(t) for t in tensors]
    out["inception.torch-fidelity"] = np.concatenate([f.numpy() for f, _ in both]).astype(np.float32)
    out["inception.logits"] = np.concatenate([l.numpy() for _, l in both]).astype(np.float32)
    # clean-fid's own resizing, in front of the same network: its TorchScript file has these weights.
    from cleanfid.resize import build_resizer
    clean = build_resizer("clean")
    def cleanly(t):
        floats = torch.tensor(clean(t[0].permute(1, 2, 0).numpy())).permute(2, 0, 1)[None].double()
        x = (floats - 128) / 128
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
                     "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
                     "Mixed_7b", "Mixed_7c", "AvgPool"):
            x = getattr(fidelity, name)(x)
        return torch.flatten(x, 1)
    out["inception.clean-fid"] = rows(cleanly)

    from efficientnet_lite_pytorch import EfficientNet
    lite = EfficientNet.from_name("efficientnet-lite0")
    load(lite, draw(shapes(lite, "efficientnet-lite0.txt")))
    def pooled(t):
        channels = [np.asarray(Image.fromarray(t[0, c].numpy().astype(np.float32)).resize((224, 224), Image.BICUBIC)) for c in range(3)]
        x = (torch.tensor(np.stack(channels))[None].double().clip(0, 255) - 127) / 128
        return lite._avg_pooling(lite.extract_features(x)).flatten(1)
    out["efficientnet-lite0"] = rows(pooled)
    out["efficientnet-lite0.logits"] = lite._fc(torch.tensor(out["efficientnet-lite0"]).double()).numpy().astype(np.float32)

# CLIP: a toy of transformers, with the transforms of open_clip, of HPSv2 (its longest side) and of CMMD.
from open_clip.transform import image_transform
from transformers import CLIPConfig, CLIPModel
config = CLIPConfig(text_config=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=49408,
                                     max_position_embeddings=77, eos_token_id=49407),
                    vision_config=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=30, patch_size=10),
                    projection_dim=12)
clip = CLIPModel(config)
drawn = draw({n: s for n, s in shapes(clip, "clip.txt").items() if n != "logit_scale"})
drawn["logit_scale"] = torch.tensor(2.6592)
clip.load_state_dict(drawn, strict=False)
clip = clip.double().eval()
mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
def stretch(image):
    image = np.asarray(image).astype(np.float32)
    channels = [np.asarray(Image.fromarray(np.ascontiguousarray(image[:, :, c])).resize((30, 30), Image.BICUBIC)).clip(0, 255) for c in range(3)]
    return (torch.tensor(np.stack(channels)).double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
ways = {"crop": image_transform(30, is_train=False, mean=mean, std=std), "pad": image_transform(30, is_train=False, mean=mean, std=std, resize_mode="longest"), "stretch": stretch}
normalize = lambda x: x / x.norm(dim=-1, keepdim=True)
with torch.no_grad():
    for name, way in ways.items():
        embeds = [clip.visual_projection(clip.vision_model(way(Image.fromarray(p))[None].double()).pooler_output) for p in pictures]
        out[f"clip.{name}"] = normalize(torch.cat(embeds)).numpy().astype(np.float32)
    import open_clip
    tokens = open_clip.tokenizer.SimpleTokenizer()(["a red circle!", "two cats"])
    texts = clip.text_projection(clip.text_model(tokens).pooler_output)
    out["clip.texts"] = normalize(texts).numpy().astype(np.float32)
metadata = {"clip": config.to_json_string(use_diff=False)}
save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, HERE / "networks.safetensors", metadata=metadata)
