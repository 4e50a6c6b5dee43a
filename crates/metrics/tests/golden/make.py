"""Writes features.safetensors, expected.json and pytorch_fid.npz: synthetic features, and their scores from pytorch-fid,
torch-fidelity and numpy.

Includes sets with fewer images than features, with repeated images, and equal sets. Precision, recall, density and
coverage are computed with numpy in f64; torch-fidelity's precision and recall agree unless a distance equals a radius.
Run with pytorch-fid 0.3, torch-fidelity 0.4: python make.py
"""
import json, pathlib, numpy as np, torch
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.numpy import save_file
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import mmd2

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(0)
WIDTH = 24
mix = rng.normal(size=(WIDTH, WIDTH)) / 3
draw = lambda n, shift=0.0, scale=1.0: ((rng.normal(size=(n, WIDTH)) * scale) @ mix + 3 + shift).astype(np.float32)
sets = {"a": draw(200), "b": draw(150, 0.2, 1.2), "few": draw(10), "fewer": draw(7, 0.1)}
sets["twice"] = np.concatenate([sets["a"][:60], sets["a"][:60], sets["b"][:20]])
sets["same"] = sets["a"].copy()

def distances(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return ((x[:, None] - y[None]) ** 2).sum(-1)

def radii(x, k):
    d = distances(x, x)
    np.fill_diagonal(d, np.inf)
    return np.sort(d, axis=1)[:, k - 1]

def inside(balls, points, k):
    """[balls, points]"""
    return distances(balls, points) <= radii(balls, k)[:, None]

expected = []
for first, second, k in [("a", "b", 3), ("a", "b", 5), ("few", "fewer", 3), ("a", "few", 5), ("twice", "b", 3), ("twice", "a", 1), ("a", "same", 3), ("b", "twice", 5)]:
    x, y = sets[first], sets[second]
    moments = [(v.astype(np.float64).mean(0), np.cov(v.astype(np.float64), rowvar=False)) for v in (x, y)]
    fid = calculate_frechet_distance(*moments[0], *moments[1])
    if min(len(x), len(y)) <= WIDTH or first == "twice" or second == "twice":
        # scipy's square root of a singular product is accurate to only a few digits, so use eigenvalues instead.
        w, v = np.linalg.eigh(moments[0][1])
        root = (v * np.sqrt(np.where(w > w.max() * 1e-13, w, 0))) @ v.T
        e = np.linalg.eigvalsh(root @ moments[1][1] @ root)
        by_hand = ((moments[0][0] - moments[1][0]) ** 2).sum() + np.trace(moments[0][1]) + np.trace(moments[1][1]) - 2 * np.sqrt(np.where(e > e.max() * 1e-13, e, 0)).sum()
        assert abs(by_hand - fid) < 1e-3 * max(fid, 1), (first, second, by_hand, fid)
        fid = by_hand
    size = min(len(x), len(y), 40)
    subsets = [[sorted(map(int, rng.choice(len(v), size, replace=False))) for v in (x, y)] for _ in range(3)]
    kernel = lambda p, q: (p.astype(np.float64) @ q.astype(np.float64).T / WIDTH + 1) ** 3
    values = [mmd2(kernel(x[i], x[i]), kernel(x[i], y[j]), kernel(y[j], y[j])) for i, j in subsets]
    among_real, among_generated = inside(x, y, k), inside(y, x, k)
    expected.append(dict(first=first, second=second, k=k, frechet=float(fid), subsets=subsets, kernel=[float(np.mean(values)), float(np.std(values))],
                         precision=float(among_real.any(0).mean()), recall=float(among_generated.any(0).mean()),
                         density=float(among_real.sum() / (k * len(y))), coverage=float(among_real.any(1).mean())))
logits = (rng.normal(size=(103, 9)) * 2).astype(np.float32)
score = isc_features_to_metric(torch.tensor(logits).double(), splits=10, shuffle=False)
sets["logits"] = logits
save_file(sets, HERE / "features.safetensors")
# In numpy: CMMD's formula, FID's line over 1/n, the distances within groups of four and to the nearest row.
def cmmd(x, y, sigma):
    k = lambda p, q: np.exp(-distances(p, q) / (2 * sigma ** 2)).mean()
    return float(k(x, x) + k(y, y) - 2 * k(x, y))
points = [[50, 9.0], [75, 7.5], [120, 6.25], [200, 5.5]]
groups = [np.sqrt(distances(g, g)) for g in sets["a"].reshape(50, 4, WIDTH)]
near = distances(sets["twice"], sets["a"])
rest = dict(cmmd=[[a, b, s, cmmd(sets[a], sets[b], s)] for a, b, s in (("a", "b", 10.0), ("few", "a", 2.0), ("a", "same", 5.0))],
            points=points, at_infinity=float(np.polyfit([1 / n for n, _ in points], [v for _, v in points], 1)[1]),
            diversity=[float(g.sum() / 12) for g in groups],
            nearest=[[int(i), float(np.sqrt(d))] for i, d in zip(near.argmin(1), near.min(1))])
(HERE / "expected.json").write_text(json.dumps(dict(rest, pairs=expected, inception_score=[float(v) for v in score.values()]), indent=1) + "\n")
np.savez(HERE / "pytorch_fid.npz", mu=sets["a"].astype(np.float64).mean(0), sigma=np.cov(sets["a"].astype(np.float64), rowvar=False))
