"""Writes drift.safetensors: the drift loss of preference tuning in f64, and its gradient with respect to the features.

One case with preferred and rejected samples among the own ones, one without rejected samples (the anchor to the frozen base).
Run with torch 2.15: python make_drift.py
"""
import pathlib, torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
SCALES = (0.02, 0.05, 0.2)
MASK = 100.0

def drift_loss(f, positives, negatives, weight):
    own = f.detach()
    targets = torch.cat([own, negatives, positives])
    n, n_targets, n_positive = len(own), len(targets), len(positives)
    w = torch.full((n_targets,), weight, dtype=f.dtype)
    w[:n] = 1
    is_positive = torch.arange(n_targets) >= n_targets - n_positive
    distance = (own[:, None] - targets[None]).norm(dim=-1)
    scale = ((distance * w).mean() / w.mean()).clamp(min=1e-3)
    unit = (scale / f.shape[1] ** 0.5).clamp(min=1e-3)
    itself = torch.zeros(n, n_targets, dtype=f.dtype)
    itself[:, :n] = torch.eye(n, dtype=f.dtype)
    direction = (targets[None] - own[:, None]) / unit
    field = torch.zeros_like(own)
    for r in SCALES:
        logits = -distance / (scale * r) - MASK / r * itself
        affinity = (logits.softmax(1) * logits.softmax(0)).clamp(min=1e-6).sqrt() * w
        towards, away = affinity * is_positive, affinity * ~is_positive
        pull = (towards * away.sum(1, keepdim=True))[..., None] * direction
        push = (away * towards.sum(1, keepdim=True))[..., None] * direction
        part = (pull - push).sum(1)
        field = field + part / part.square().mean().sqrt()
    return (f / unit - (own / unit + field)).square().mean()

torch.manual_seed(0)
tensors = {}
features = torch.randn(6, 10) * 0.5 + 0.2
cases = {"preferred": (features[[1, 4]], features[[0, 3]], 3000.0), "anchor": (features + 0.3 * torch.randn(6, 10), features[:0], 1.0)}
for name, (positives, negatives, weight) in cases.items():
    f = features.double().requires_grad_()
    loss = drift_loss(f, positives.double(), negatives.double(), weight)
    loss.backward()
    tensors |= {f"{name}.positives": positives, f"{name}.loss": loss.detach().float().reshape(1), f"{name}.grad": f.grad.float()}
    if len(negatives):
        tensors[f"{name}.negatives"] = negatives
    print(name, loss.item(), f.grad.abs().max().item())
tensors["features"] = features
save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "drift.safetensors")
