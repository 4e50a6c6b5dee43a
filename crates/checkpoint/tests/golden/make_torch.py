"""Writes torch/*.ckpt, torch.save files with everything that training programs save besides weights, and
torch.safetensors, the weights.

Run with torch 2.15: python make_torch.py
"""
import argparse, collections, datetime, pathlib, sys, types
import numpy as np, torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
OUT = HERE / "torch"
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)


def module(name, **members):
    sys.modules[name] = made = types.ModuleType(name)
    for key, value in members.items():
        value.__module__ = name
        setattr(made, key, value)
    return made


class ModelCheckpoint:
    pass


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.tied = self.conv
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)


module("pytorch_lightning"), module("pytorch_lightning.callbacks")
module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
module("net", Net=Net)

weights = {"conv.weight": torch.randn(3, 2, 2, 2), "conv.bias": torch.randn(3), "scale": torch.randn(()), "half": torch.randn(4, 3).half(),
           "brain": torch.randn(5).bfloat16(), "count": torch.tensor(7), "ids": torch.arange(4)[None]}
save_file({name: value.contiguous() for name, value in weights.items()}, HERE / "torch.safetensors")

callback = {"monitor": "val/loss", "best_model_score": torch.tensor(0.1), "current_score": None, "when": datetime.datetime(2022, 8, 1)}
optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}
company = {"epoch": 3, "global_step": np.int64(7), "callbacks": {ModelCheckpoint: callback}, "optimizer_states": [optimizer], "lr_schedulers": [collections.defaultdict(list)],
           "keys": {(1, 2): 3, 0.5: 3, None: 1, True: 1, ModelCheckpoint: torch.ones(1)}, "big": 2**80, "negative": -5, "bytes": b"abc", "set": {1, 2}, "frozen": frozenset({3}),
           "slice": slice(1, 2), "size": torch.Size([1]), "dtype": torch.float16, "device": torch.device("cpu"), "arguments": argparse.Namespace(a=1), "array": np.arange(4.0), "object": ModelCheckpoint()}
flat, shared, at = torch.cat([weights[name].flatten() for name in ("conv.weight", "conv.bias", "scale")]), {}, 0
for name in ("conv.weight", "conv.bias", "scale"):
    shared[name] = flat[at : at + weights[name].numel()].view(weights[name].shape)
    at += weights[name].numel()
strided = {name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value.t().contiguous().t() if value.ndim == 2 else value for name, value in weights.items()}
ordered = collections.OrderedDict(weights)
ordered._metadata = {"": {"version": 1}}
files = {"plain": weights, "lightning": {"state_dict": ordered, **company}, "beside": {**weights, "optimizer": optimizer, "lr_scheduler": {"last": torch.ones(1)}},
         "strided": strided, "offsets": weights | shared, "parameters": {name: torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()}}
for name, value in files.items():
    torch.save(value, OUT / f"{name}.ckpt")
    torch.save(value, OUT / f"{name}-legacy.ckpt", _use_new_zipfile_serialization=False)
torch.save(files["lightning"], OUT / "lightning-protocol4.ckpt", pickle_protocol=4)
net = Net()
net.conv.weight.data, net.conv.bias.data = torch.zeros(3, 2, 3, 3), weights["conv.bias"]
torch.save(net, OUT / "module.ckpt")
torch.save({"e4m3": torch.tensor([1.0, -1.5, 448.0]).to(torch.float8_e4m3fn), "e5m2": torch.tensor([2.0, 0.25]).to(torch.float8_e5m2), "u16": torch.tensor([1, 65535], dtype=torch.uint16)}, OUT / "float8.ckpt")
torch.save({"complex": torch.ones(2, dtype=torch.complex64), "fine": torch.ones(1)}, OUT / "complex.ckpt")
torch.save({"sparse": torch.eye(2).to_sparse()}, OUT / "sparse.ckpt")
torch.save({"epoch": 3}, OUT / "nothing.ckpt")
