"""Benchmarks the parts of SD-Turbo in swiftbrush, in PyTorch with both memory formats, and in other programs.

    cargo build --release --workspace --bins
    (cd benches/peers/candle && RUSTFLAGS="-C target-cpu=native" cargo build --release)
    python parts.py FOLDER [--rounds 5] [--batch 1] [--dtype f32] [--device cpu] [--binary target/release/parts]
                    [--peers candle compile graphs int8 openvino openvino-bf16 openvino-int8 torchao onnxruntime onnxruntime-int8]
                    [--json FILE]

Runs alternate between the programs, one part at a time, so that all see the same machine load; warm-up rounds are not counted.
FOLDER is a model written by make_model.py; --batch 2 is the denoiser's call with guidance. A part is a network, or a single
operation at Stable Diffusion's shapes. The peer `compile` is torch.compile with its default backend, `graphs` the same with
mode="max-autotune" (CUDA graphs), `int8` swiftbrush's own int8 weights, and `openvino` the PyTorch module converted to OpenVINO in f32; `openvino-bf16` computes in bf16, and
`openvino-int8` is quantised by NNCF with four random inputs for calibration. `torchao` quantises linear layers to int8, activations
dynamically; `onnxruntime` runs the exported module, and `onnxruntime-int8` quantises its products dynamically.
On a CPU, --dtype applies only to PyTorch; the others compute in f32 or as their names say. With --device cuda, swiftbrush computes
in --dtype too, and --binary must be built for CUDA. Prints medians, with minimum and maximum in brackets, the ratio of each median
to swiftbrush's in f32, and the relative error (root mean square) of each peer's output against PyTorch's in f32.
"""
import argparse, gc, json, os, pathlib, statistics, subprocess, tempfile, time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

HERE = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--parts", nargs="*", default=["text_encoder", "unet", "kl", "taesd"])
parser.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="f32")
parser.add_argument("--peers", nargs="*", default=[],
                    choices=["candle", "compile", "graphs", "int8", "openvino", "openvino-bf16", "openvino-int8", "torchao",
                             "onnxruntime", "onnxruntime-int8"])
parser.add_argument("--device", default="cpu")
parser.add_argument("--binary", default=str(HERE.parents[1] / "target/release/parts"))
parser.add_argument("--warm-up", type=int, default=1)
parser.add_argument("--scratch", help="folder for exported models [default: the system's]")
parser.add_argument("--json")
args = parser.parse_args()

class Process:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip() == "ready"

    def __call__(self, part):
        self.process.stdin.write(f"{part} {args.batch}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

DTYPE = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16)[args.dtype]
# Stable Diffusion's shapes: self-attention and its scores at 64x64, the decoder's normalisation and activation at 512x512.
OPERATIONS = {
    "attention": ([5, 4096, 64], lambda x: F.scaled_dot_product_attention(x, x, x)),
    "group_norm": ([128, 512, 512], lambda x: F.group_norm(x, 32, x.new_ones(128), x.new_zeros(128))),
    "group_norm_silu": ([128, 512, 512], lambda x: F.silu(F.group_norm(x, 32, x.new_ones(128), x.new_zeros(128)))),
    "silu": ([128, 512, 512], F.silu),
    "softmax": ([10, 1024, 1024], lambda x: F.softmax(x, -1)),
    "upsample": ([128, 256, 256], lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")),
}

class Decoder(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, latents):
        return self.network.decode(latents).sample

class Denoiser(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, latents, context):
        return self.network(latents, torch.tensor(999, device=latents.device), context).sample

class Encoder(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, tokens):
        return self.network(tokens).last_hidden_state

class Operation(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

def load(part):
    if part in OPERATIONS:
        network = Operation(OPERATIONS[part][1])
    elif part == "text_encoder":
        network = Encoder(CLIPTextModel.from_pretrained(args.folder, subfolder="text_encoder"))
    elif part == "unet":
        network = Denoiser(UNet2DConditionModel.from_pretrained(args.folder, subfolder="unet"))
    elif part == "kl":
        network = Decoder(AutoencoderKL.from_pretrained(args.folder, subfolder="vae"))
    else:
        network = Decoder(AutoencoderTiny())
    return network.eval().to(args.device, DTYPE)

def inputs(part, layout=torch.contiguous_format):
    if part in OPERATIONS:
        x = randn(*OPERATIONS[part][0])
        return [x.to(memory_format=layout) if part != "softmax" else x]
    if part == "text_encoder":
        return [torch.ones(args.batch, 77, dtype=torch.long, device=args.device)]
    latents = randn(4, 64, 64).to(memory_format=layout)
    return [latents, randn(77, width())] if part == "unet" else [latents]

def width():
    """Width of the text encoder's states."""
    return json.loads(pathlib.Path(args.folder, "unet/config.json").read_text())["cross_attention_dim"]

def randn(*shape):
    return torch.randn(args.batch, *shape, device=args.device).to(DTYPE)

def wait():
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()

def timed(run, arguments):
    wait()
    begun = time.perf_counter()
    with torch.no_grad():
        run(*arguments)
    wait()
    return time.perf_counter() - begun

def pytorch(part, layout):
    return load(part).to(memory_format=layout)

def compiled(part, **options):
    return torch.compile(load(part), **options)

def openvino(part, precision="f32", is_quantized=False):
    import openvino as ov
    example = tuple(inputs(part))
    model = ov.convert_model(load(part), example_input=example, input=[tuple(x.shape) for x in example])
    if is_quantized:
        import nncf
        samples = [tuple(x.numpy() for x in inputs(part)) for _ in range(4)]
        model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER)
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": os.cpu_count(), "PERFORMANCE_HINT": "LATENCY"}
    network = ov.Core().compile_model(model, "CPU", options)
    return lambda *x: torch.from_numpy(network(tuple(x.numpy() for x in x))[0])

def torchao(part):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    network = load(part)
    quantize_(network, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(network)

def onnxruntime(part, is_quantized=False):
    import onnxruntime as ort
    folder = tempfile.TemporaryDirectory(dir=args.scratch)
    path = pathlib.Path(folder.name, "model.onnx")
    with torch.no_grad():
        torch.onnx.export(load(part), tuple(inputs(part)), path, dynamo=False, opset_version=17)
    if is_quantized:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        path = path.with_name("int8.onnx")
        quantize_dynamic(path.with_name("model.onnx"), path, weight_type=QuantType.QInt8, use_external_data_format=True,
                         op_types_to_quantize=["MatMul", "Gemm", "Attention"])
    options = ort.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    run = lambda *x: torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in x))))[0])
    run.folder = folder
    return run

own_dtype = "f32" if args.device == "cpu" else args.dtype
processes = {"ours": Process(args.binary, args.folder, own_dtype)}
if "int8" in args.peers:
    processes["int8"] = Process(args.binary, args.folder, "int8")
if "candle" in args.peers:
    processes["candle"] = Process(HERE / "candle/target/release/candle-parts", args.folder)

def variants(part):
    """Yields the name of each peer, its memory format and a function that loads it, called just before its runs to keep one model
    in memory at a time."""
    contiguous = torch.contiguous_format
    yield "PyTorch", contiguous, lambda: pytorch(part, contiguous)
    if part not in ("text_encoder", "softmax", "attention"):
        yield "PyTorch, channels last", torch.channels_last, lambda: pytorch(part, torch.channels_last)
    peers = {
        "compile": ("PyTorch, compiled", lambda: compiled(part)),
        "graphs": ("PyTorch, graphs", lambda: compiled(part, mode="max-autotune")),
        "torchao": ("torchao, int8", lambda: torchao(part)),
        "openvino": ("OpenVINO", lambda: openvino(part)),
        "openvino-bf16": ("OpenVINO, bf16", lambda: openvino(part, "bf16")),
        "openvino-int8": ("OpenVINO, int8", lambda: openvino(part, is_quantized=True)),
        "onnxruntime": ("onnxruntime", lambda: onnxruntime(part)),
        "onnxruntime-int8": ("onnxruntime, int8", lambda: onnxruntime(part, is_quantized=True)),
    }
    for name in args.peers:
        if name in peers:
            label, prepare = peers[name]
            yield label, contiguous, prepare

def own_peers(part):
    """Names of the peers that are programs of their own."""
    yield from (name for name in ("int8", "candle") if name in processes and (name == "int8" or part in ("text_encoder", "unet", "kl")))

def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())

results = {}
for part in args.parts:
    times, errors = {}, {}
    fixed, expected = inputs(part), None
    for name, layout, prepare in variants(part):
        try:
            network = prepare()
            with torch.no_grad():
                found = network(*(x.to(memory_format=layout) if x.dim() == 4 else x for x in fixed))
        except Exception as error:  # a peer that cannot run this part has no row
            print(f"{part:15} {name:23} failed: {str(error)[:300]}", flush=True)
            continue
        expected = found.double() if expected is None else expected
        errors[name] = relative_error(found, expected)
        for round in range(args.rounds + args.warm_up):
            for who, seconds in ((name, timed(network, inputs(part, layout))), ("ours", processes["ours"](part))):
                if round >= args.warm_up:
                    times.setdefault(who, []).append(seconds)
        del network
        torch.compiler.reset()
        gc.collect()
    for name in own_peers(part):
        for round in range(args.rounds + args.warm_up):
            for who in (name, "ours"):
                seconds = processes[who](part)
                if round >= args.warm_up:
                    times.setdefault("ours, int8" if who == "int8" else who, []).append(seconds)
    results[part] = dict(seconds=times, errors=errors)
    ours = statistics.median(times["ours"])
    for who, v in times.items():
        ratio = statistics.median(v) / ours
        error = f"  error {errors[who]:.2g}" if who in errors else ""
        print(f"{part:15} {who:23} {statistics.median(v):8.4f} s [{min(v):.4f}, {max(v):.4f}]  {ratio:5.2f}{error}", flush=True)
    best = min(statistics.median(v) for who, v in times.items() if who in ("PyTorch", "PyTorch, channels last"))
    print(f"{part:15} swiftbrush is {best / ours:.2f} times as fast as PyTorch in its faster memory format", flush=True)
for name, process in processes.items():
    process.process.stdin.close()
    process.process.wait()
if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
