"""Writes lpips.safetensors and lpips/: distances and gradients of LPIPS 0.1 on a VGG16 with a sixteenth of its channels.

Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with lpips 0.1.4, torch 2.15 and torchvision 0.29: python make_lpips.py
"""
import pathlib, types, torch
import lpips
from safetensors.torch import save_file
from torchvision.models.vgg import make_layers

HERE = pathlib.Path(__file__).parent
WIDTHS = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]

torch.manual_seed(0)
vgg = torch.nn.Module()
vgg.features = make_layers(WIDTHS)
for parameter in vgg.parameters():
    parameter.data = torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else torch.rand_like(parameter)
lpips.pretrained_networks.tv = types.SimpleNamespace(vgg16=lambda pretrained: vgg)
network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
folder = HERE / "lpips"
folder.mkdir(exist_ok=True)
linear = {}
for index, lin in enumerate(network.lins):
    convolution = lin.model[1]
    convolution.weight.data = torch.rand(1, convolution.weight.shape[1] // 16, 1, 1)
    linear[f"lin{index}.model.1.weight"] = convolution.weight.data
# torchvision's file has a classifier, which LPIPS does not use.
torch.save(vgg.state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16.pth")
# As the package's own file, which is older than PyTorch 1.6.
torch.save(linear, folder / "vgg.pth", _use_new_zipfile_serialization=False)

images, targets = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(2))
network.double()
leaf = images.double().requires_grad_()
distances = network(leaf, targets.double())
distances.sum().backward()
assert leaf.grad.isfinite().all()  # a pixel whose features are all zero has a NaN
tensors = dict(images=images, targets=targets, distances=distances, images_grad=leaf.grad)
save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, HERE / "lpips.safetensors")
