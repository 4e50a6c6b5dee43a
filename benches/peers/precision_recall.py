"""Computes precision and recall (k = 3) of random features with PyTorch's cdist in blocks; the counterpart of the example
`at_scale` in swiftbrush-metrics.

    python precision_recall.py 40504 30000 2048
"""
import resource, sys, time, torch

real, generated, width = map(int, sys.argv[1:])
torch.manual_seed(0)
real, generated = torch.randn(real, width), torch.randn(generated, width)
BLOCK = 1000
begun = time.perf_counter()

def radii(x):
    return torch.cat([torch.cdist(block, x).kthvalue(4, dim=1).values for block in x.split(BLOCK)])

def among(points, balls, radii):
    return sum((torch.cdist(block, balls) <= radii).any(1).sum().item() for block in points.split(BLOCK)) / len(points)

real_radii, generated_radii = radii(real), radii(generated)
precision, recall = among(generated, real, real_radii), among(real, generated, generated_radii)
print(f"precision {precision:.4f}, recall {recall:.4f} in {time.perf_counter() - begun:.1f} s, "
      f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
