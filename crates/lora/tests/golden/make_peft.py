"""Writes configurations/*: PEFT folders with options that change the effect of an adapter, each with expected.safetensors:
the change of every weight after PeftModel.from_pretrained and merge_and_unload.

Run with peft 0.21 and torch 2.15: python make_peft.py
"""
import copy, pathlib, shutil, torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "configurations"
shutil.rmtree(OUT, ignore_errors=True)
torch.manual_seed(0)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, torch.nn.Linear(6, 4))


def nested(paths):
    root = torch.nn.Module()
    for path in paths:
        module, (*parents, last) = root, path.split(".")
        for name in parents:
            if not hasattr(module, name):
                module.add_module(name, torch.nn.Module())
            module = getattr(module, name)
        module.add_module(last, Attention())
    return root


base = nested([f"{block}.transformer_blocks.0.attn{i}" for block in ("down_blocks.0.attentions.0", "mid_block.attentions.0") for i in (1, 2)])
plain = {name: weight.double() for name, weight in base.state_dict().items()}
ALL = ["to_q", "to_k"]
CASES = {
    "order": dict(alpha_pattern={"to_q": 1, "attn1.to_q": 32}),
    "other-order": dict(alpha_pattern={"attn1.to_q": 32, "to_q": 1}),
    "regex": dict(alpha_pattern={r"down_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.\d+\.attn[12]\.to_(q|v)": 32}),
    "anchored": dict(alpha_pattern={"^down_blocks.*to_q": 32}),
    "ranks": dict(rank_pattern={"to_q": 3}, alpha_pattern={"attn1.to_q": 32}),
    "rslora": dict(use_rslora=True, rank_pattern={"to_q": 3}, alpha_pattern={"attn1.to_q": 32}),
    "excluded": dict(exclude_modules=["attn2.to_k"]),
    "pattern-of-targets": dict(target_modules=r".*attn1\.to_[qk]"),
    "orthogonal": dict(init_lora_weights="orthogonal"),
    "gaussian": dict(init_lora_weights="gaussian"),
    "pissa": dict(init_lora_weights="pissa"),
    "olora": dict(init_lora_weights="olora"),
    "dora": dict(use_dora=True),
    "bias": dict(lora_bias=True),
}
for name, options in CASES.items():
    options = dict(r=2, lora_alpha=4, target_modules=ALL, init_lora_weights=True) | options
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**options))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(OUT / name)
    (OUT / name / "README.md").unlink()
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), OUT / name)
    merged = loaded.merge_and_unload().state_dict()
    changes = {key.removesuffix(".weight"): (merged[key].double() - weight).float() for key, weight in plain.items()}
    save_file({key: change for key, change in changes.items() if change.abs().max() > 0}, OUT / name / "expected.safetensors")
