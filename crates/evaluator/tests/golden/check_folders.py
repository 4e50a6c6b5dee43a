"""Compares the program `evaluate` with pytorch-fid, torch-fidelity and clean-fid on two folders of images.

Not part of the tests, which do not need Python: the tests compare the parts, and this script compares the whole, from files to
scores. Inception has the random weights of make.py, saved in the format that those programs publish.
Both folders contain the same number of images, so that the kernel distance covers all of them; the images of a folder have one
size, which pytorch-fid needs. Run as: python check_folders.py EVALUATE GENERATED REAL
"""
import json, pathlib, subprocess, sys, tempfile
import torch

evaluate, generated, real = sys.argv[1:4]
folder = pathlib.Path(tempfile.mkdtemp())

import pytorch_fid.fid_score, pytorch_fid.inception as pf
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

lines = (pathlib.Path(__file__).parent / "inception.txt").read_text().splitlines()
weights = {}
for seed, line in enumerate(lines):
    name, shape = line.split(" ")
    shape = [int(size) for size in shape.split(",")]
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if name.endswith("running_var"):
        normal = normal.square() * 0.5 + 0.5
    elif len(shape) == 1:
        normal = normal * 0.1 + (1.0 if name.endswith("weight") else 0.0)
    else:
        normal = normal * (2.0 / torch.Size(shape[1:]).numel()) ** 0.5
    weights[name] = normal
for name in [name for name in weights if name.endswith("running_mean")]:
    weights[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
path = folder / "pt_inception-2015-12-05-6726825d.pth"
torch.save(weights, path)

def ours(protocol, measures=None):
    if measures is not None:
        file = folder / f"{protocol}.json"
        file.write_text(json.dumps(dict(name=protocol, version=1, pictures="as-they-are", measures=measures)))
        protocol = str(file)
    output = pathlib.Path(tempfile.mkdtemp())
    subprocess.run([evaluate, "--pictures", generated, "--reference", real, "--protocol", protocol, "--network", f"inception={path}",
                    "--resamples", "0", "--sheet", "0", "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
    return {value["name"]: value["value"] for value in json.loads((output / "result.json").read_text())["values"]}

def compare(name, found, expected):
    print(f"{name}: {found:.8g}, {expected:.8g} there, off by {abs(found - expected) / max(abs(expected), 1e-12):.1e}")

count = min(len(list(pathlib.Path(p).glob("*.png"))) for p in (generated, real))
pf.load_state_dict_from_url = lambda *a, **k: weights
fid = pytorch_fid.fid_score.calculate_fid_given_paths([real, generated], 8, "cpu", 2048, 1)
compare("pytorch-fid FID", ours("pytorch-fid")["FID"], fid)

network = "inception/torch-fidelity"
found = ours("check", [dict(measure="frechet-distance", network=network), dict(measure="kernel-distance", network=network, subsets=1, size=count),
                       dict(measure="inception-score", network=network, splits=1), dict(measure="precision-recall", network=network, k=3)])
theirs = calculate_metrics(input1=generated, input2=real, cuda=False, fid=True, kid=True, isc=True, prc=True, kid_subsets=1, kid_subset_size=count,
                           isc_splits=1, feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(path), verbose=False, save_cpu_ram=True, cache=False, batch_size=8)
compare("torch-fidelity FID", found["FID"], theirs["frechet_inception_distance"])
compare("torch-fidelity KID", found["KID"], theirs["kernel_inception_distance_mean"])
compare("torch-fidelity inception score", found["inception score"], theirs["inception_score_mean"])
compare("torch-fidelity precision", found["precision"], theirs["precision"])
compare("torch-fidelity recall", found["recall"], theirs["recall"])

from cleanfid import fid as cleanfid
layers = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
names = [n for n, _ in layers.named_children() if n != "fc"]
def clean(x):
    with torch.no_grad():
        x = (x - 128) / 128
        for name in names:
            x = getattr(layers, name)(x)
        return torch.flatten(x, 1)
theirs = cleanfid.compute_fid(generated, real, mode="clean", device=torch.device("cpu"), num_workers=0, batch_size=8, verbose=False,
                              use_dataparallel=False, custom_feat_extractor=clean)
compare("clean-fid FID", ours("clean-fid")["FID"], theirs)
