"""Writes int8.safetensors: linear layers, convolutions and attention in int8, in integers and single f32 operations.

Sums are exact (int64); every f32 operation is rounded once, in the order in which the kernels do it, so results must be
bit-identical. Run with numpy 2 and safetensors: python int8.py
"""
import pathlib
import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
LARGEST = np.float32(127)
NEGLIGIBLE = LARGEST * np.finfo(np.float32).tiny
rng = np.random.default_rng(0)


def quantize(x, axis):
    """Codes and scales, with a scale for each position along the other axes."""
    largest = np.abs(x).max(axis=axis, keepdims=True)
    zero = largest <= NEGLIGIBLE
    safe = np.where(zero, LARGEST, largest)
    scale = np.where(zero, np.float32(0), safe / LARGEST)
    codes = np.rint(x * np.where(zero, np.float32(0), LARGEST / safe))
    assert codes.min() >= -127 and codes.max() <= 127 and codes.dtype == scale.dtype == np.float32
    return codes.astype(np.int64), scale


def draw(*shape, outlier=False):
    x = rng.normal(0.3, 1.5, shape).astype(np.float32)
    if outlier:
        x.flat[rng.integers(0, x.size, max(1, x.size // 50))] *= np.float32(40)
    return x


def linear(x, weight, bias, residual):
    (x, sx), (w, sw) = quantize(x, 1), quantize(weight, 1)
    out = (x @ w.T).astype(np.float32) * sx * sw.T
    return ((bias + residual) + out), w, sw[:, 0]


def convolution(x, weight, bias, residual, stride, padding, relu):
    (x, sx), (w, sw) = quantize(x, 1), quantize(weight.reshape(len(weight), -1), 1)
    w = w.reshape(weight.shape)
    frame = ((0, 0), (0, 0), padding, padding)
    x, sx = np.pad(x, frame), np.pad(sx, frame)
    rows, columns = weight.shape[2:]
    height, width = [(side - k) // stride + 1 for side, k in zip(x.shape[2:], (rows, columns))]
    total = np.zeros((len(x), len(w), height, width), np.float32)
    for i in range(rows):
        for j in range(columns):
            def under(image):
                image = image[:, :, i:i + stride * (height - 1) + 1:stride]
                return image[:, :, :, j:j + stride * (width - 1) + 1:stride]
            sums = np.einsum("bihw,oi->bohw", under(x), w[:, :, i, j])
            total = total + sums.astype(np.float32) * under(sx)
    out = total * sw.reshape(1, -1, 1, 1) + bias[:, :, None, None] + residual
    return np.maximum(out, 0) if relu else out, w, sw[:, 0]


def power_of_two(x, coefficients=(0.00956051, 0.05591704, 0.24024981, 0.69312197, 0.99999919), least=-126):
    """2**x for x <= 0, by the operations of the kernel."""
    x = np.maximum(x, np.float32(least))
    n = np.rint(x)
    r = x - n
    p = np.full_like(x, np.float32(coefficients[0]))
    for c in coefficients[1:]:
        p = p * r + np.float32(c)
    return np.ldexp(p, n.astype(np.int32))


def weight_codes(x):
    return np.rint(power_of_two(x, (14.047613, 61.86403, 176.78544, 254.98188), -16)).astype(np.int64)


def attention(query, key, value):
    """A head, in blocks of at most 96 keys, four of which share the largest score so far."""
    keys, width = key.shape
    block = -(-keys // -(-keys // 96))
    block = -(-block // 4) * 4
    means = np.zeros(width, np.float32)
    for row in key:
        means = means + row
    means = means / np.float32(keys)
    (q, sq), (k, sk), (v, sv) = quantize(query, 1), quantize(key - means, 1), quantize(value, 0)
    unit = np.log2(np.e).astype(np.float32) / np.sqrt(np.float32(width))
    largest = np.full(len(q), -np.inf, np.float32)
    total, out = np.zeros(len(q), np.float32), np.zeros((width, len(q)), np.float32)
    for first in range(0, keys, 4 * block):
        found = []
        for begin in range(first, min(first + 4 * block, keys), block):
            part = slice(begin, min(begin + block, keys))
            scores = (k[part] @ q.T).astype(np.float32) * (sq[:, 0] * unit) * sk[part]
            peak = scores.max(0)
            codes = weight_codes(scores - peak)
            found.append((part, peak, codes))
        before, largest = largest, np.max([largest] + [peak for _, peak, _ in found], 0)
        factor = power_of_two(before - largest)
        total, mixed = total * factor, np.zeros_like(out)
        for part, peak, codes in found:
            worth = power_of_two(peak - largest)
            total = total + worth * codes.sum(0).astype(np.float32)
            mixed = mixed + (v[part].T @ codes).astype(np.float32) * worth
        out = out * factor + mixed * sv.T
    return (out * (np.float32(1) / total)).T


tensors = {}


def store(name, **arrays):
    for key, array in arrays.items():
        tensors[f"{name}.{key}"] = np.ascontiguousarray(array.astype(np.int32) if key == "codes" else array)


for name, (rows, inputs, outputs) in {
    "one": (1, 1, 1), "odd": (5, 33, 70), "text": (77, 64, 35), "long": (530, 20, 49), "deep": (6, 1290, 10),
}.items():
    x, weight = draw(rows, inputs, outlier=True), draw(outputs, inputs)
    if rows > 1:
        x[2] = 0  # a token of zeros
        x[3] = np.float32(-1e30) * (1 - 2 * (np.arange(inputs) % 2))  # codes −127 and 127 only
        weight[1] = 0
        weight[2] = np.where(np.arange(inputs) % 2 == 0, np.float32(-3), np.float32(3))
    bias, residual = draw(outputs), draw(rows, outputs)
    out, codes, scales = linear(x, weight, bias, residual)
    store(f"linear.{name}", input=x, weight=weight, bias=bias, residual=residual, codes=codes, scales=scales, out=out)

for name, (batch, inputs, outputs, size, kernel, stride, padding, relu) in {
    "odd": (2, 5, 7, (9, 6), 3, 1, (1, 1), True),
    "wide": (1, 8, 50, (12, 70), 3, 1, (1, 1), False),
    "strided": (2, 12, 5, (13, 10), 3, 2, (1, 1), False),
    "whole": (2, 5, 6, (9, 48), 3, 1, (1, 1), False),
    "whole-strided": (1, 5, 6, (8, 32), 3, 2, (0, 1), True),
    "uneven": (1, 6, 9, (8, 8), 3, 2, (0, 1), True),
    "pointwise": (2, 17, 20, (7, 5), 1, 1, (0, 0), False),
    "skipping": (1, 4, 3, (7, 9), 1, 2, (0, 0), False),
}.items():
    x, weight = draw(batch, inputs, *size, outlier=True), draw(outputs, inputs, kernel, kernel)
    x[0, :, 1, 2] = 0
    weight[1] = 0
    bias = draw(batch, outputs)
    out = [(side + sum(padding) - kernel) // stride + 1 for side in size]
    residual = draw(batch, outputs, *out)
    out, codes, scales = convolution(x, weight, bias, residual, stride, padding, relu)
    store(f"convolution.{name}", input=x, weight=weight, bias=bias, residual=residual, codes=codes, scales=scales, out=out)

for name, (batch, heads, queries, keys, width) in {
    "one": (1, 1, 1, 1, 1), "odd": (2, 3, 5, 7, 6), "text": (1, 2, 70, 77, 64), "long": (1, 2, 65, 500, 8),
}.items():
    query, key, value = draw(batch, heads, queries, width), draw(batch, heads, keys, width, outlier=True), draw(batch, heads, keys, width)
    if keys > 1:
        query[0, 0, 1] = 0
        value[0, 0, :, 2] = 0
    out = np.array([[attention(*head) for head in zip(*image)] for image in zip(query, key, value)])
    store(f"attention.{name}", query=query, key=key, value=value, out=out)

save_file(tensors, HERE / "int8.safetensors")
