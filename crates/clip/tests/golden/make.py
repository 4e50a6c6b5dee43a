"""Writes text_*.safetensors, clip_*.safetensors, resize.safetensors and the tokenizer's golden files.

Networks: weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with transformers 5.23 and torch 2.15: python make.py
"""
import gzip, json, pathlib, shutil, tempfile, torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

HERE = pathlib.Path(__file__).parent

def perturbed(model):
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return model.eval()

def store(name, model, tensors):
    with tempfile.TemporaryDirectory() as folder:  # names as transformers saves them
        model.float().save_pretrained(folder)
        from safetensors.torch import load_file
        weights = {f"weights.{k}": v for k, v in load_file(f"{folder}/model.safetensors").items()}
        config = pathlib.Path(f"{folder}/config.json").read_text()
    tensors = {k: (v if v.dtype in (torch.int64,) else v.float()).detach().contiguous() for k, v in tensors.items()}
    save_file(tensors | weights, HERE / f"{name}.safetensors", metadata={"config": config})

TEXT = {
    "text_gelu": dict(hidden_act="gelu", eos_token_id=63),
    "text_quick_gelu": dict(hidden_act="quick_gelu", eos_token_id=2, num_hidden_layers=3),
}
SIZES = dict(vocab_size=64, hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
             max_position_embeddings=10, projection_dim=8, bos_token_id=62, pad_token_id=1)
TOKENS = torch.tensor([[62, 5, 9, 30, 63, 63, 63, 63, 63, 63], [62, 1, 2, 3, 4, 5, 6, 7, 8, 63]])
for name, config in TEXT.items():
    torch.manual_seed(0)
    model = perturbed(CLIPTextModel(CLIPTextConfig(**(SIZES | config)))).double()
    store(name, model, dict(tokens=TOKENS, states=model(TOKENS).last_hidden_state))

VISION = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16,
              patch_size=4)
for name, act, eos in [("clip_gelu", "gelu", 63), ("clip_quick_gelu", "quick_gelu", 2)]:
    torch.manual_seed(0)
    config = CLIPConfig(text_config=SIZES | dict(hidden_act=act, eos_token_id=eos), vision_config=VISION | dict(hidden_act=act),
                        projection_dim=8)
    model = perturbed(CLIPModel(config)).double()
    images = torch.randn(2, 3, 16, 16)
    images64 = images.double().requires_grad_()
    out = model(input_ids=TOKENS, pixel_values=images64)
    cosine = (out.image_embeds * out.text_embeds).sum(1)
    cosine.sum().backward()
    store(name, model, dict(tokens=TOKENS, images=images, image_embeds=out.image_embeds, text_embeds=out.text_embeds,
                            cosine=cosine, images_grad=images64.grad))

torch.manual_seed(0)
tensors = {}
for name, (height, width, to) in dict(down=(37, 50, 16), up=(5, 7, 12), same_rows=(16, 9, 16)).items():
    images = torch.rand(2, 3, height, width)
    resized = torch.nn.functional.interpolate(images.double(), (to, to), mode="bicubic", antialias=True)
    # torch's antialiased bicubic uses a = -0.5, as Pillow does
    tensors |= {f"{name}.in": images, f"{name}.out": resized.float()}
save_file(tensors, HERE / "resize.safetensors")

# A small vocabulary cut from CLIP's own: bytes, bytes at word ends, and the first merges.
import open_clip
source = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
merges = gzip.open(source).read().decode().split("\n")[1:1 + 3000]
def bytes_to_unicode():
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    cs, n = bs[:], 0
    for b in range(256):
        if b not in bs:
            bs.append(b); cs.append(256 + n); n += 1
    return [chr(c) for c in cs]
vocab = bytes_to_unicode()
vocab += [v + "</w>" for v in vocab] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
folder = HERE / "tokenizer"
folder.mkdir(exist_ok=True)
(folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocab)}, ensure_ascii=False))
(folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
(folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "<|endoftext|>"}))
(folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
PROMPTS = ["", "a red circle above a green star on a white background", "  A  Photo,\tof 12 CATS!! it's… ", "naïve café Ünïcödé 日本語 🙂",
           "<|endoftext|> in the middle <|startoftext|>", "word " * 100, "don't we'll they've I'm he'd ''' --- ####", "x" * 500,
           "e\u0301 combining", "\u00a0non\u2009breaking\u3000spaces"]
from tokenizers import Tokenizer
tokenizer = CLIPTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), pad_token="!", model_max_length=77) \
    if "vocab" in CLIPTokenizerFast.__init__.__code__.co_varnames else CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=77)
ids = [tokenizer(p, padding="max_length", max_length=77, truncation=True).input_ids for p in PROMPTS]
(HERE / "tokens.json").write_text(json.dumps([{"prompt": p, "ids": i} for p, i in zip(PROMPTS, ids)], ensure_ascii=True, indent=0))
