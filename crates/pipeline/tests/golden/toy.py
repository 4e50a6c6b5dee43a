"""Shared by the scripts in this folder: the tokenizer, noise schedule and weights of the toy models."""
import json, pathlib, shutil, torch
from transformers import CLIPTokenizer

HERE = pathlib.Path(__file__).parent
LENGTH = 12
PROMPTS = ["a red circle on a blue background", ""]
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)

def tokenizer(pad="!"):
    """CLIP's byte symbols, and merges for a few words."""
    clear = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(b) for b in clear] + [chr(256 + i) for i in range(256 - len(clear))]
    merges = ["r e", "re d</w>", "o n</w>", "c i", "ci r"]
    words = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder = HERE / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, pad_token=pad)
    shutil.rmtree(folder)
    return made, len(words)

def perturbed(model):
    """Randomises initial values that hide mistakes, such as zero biases."""
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()
