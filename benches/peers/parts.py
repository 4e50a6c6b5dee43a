"""Times the parts of SD-Turbo in turn: ours, PyTorch's in both of its layouts, and candle's; prints ratios.

    cargo build --release --workspace --bins
    (cd benches/peers/candle && RUSTFLAGS="-C target-cpu=native" cargo build --release)
    python parts.py FOLDER [--rounds 5] [--batch 1] [--candle] [--json FILE]

All run in processes that wait for one another, a part at a time, so that every round meets the same machine; the first round
is not counted. FOLDER is a model as make_model.py writes it. Seconds are medians, the least and the greatest in brackets;
ratios are of medians, ours to the better of PyTorch's layouts.
"""
import argparse, json, os, pathlib, statistics, subprocess, time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

HERE = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--parts", nargs="*", default=["text_encoder", "unet", "kl", "taesd"])
parser.add_argument("--candle", action="store_true")
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

def load(part):
    if part == "text_encoder":
        return CLIPTextModel.from_pretrained(args.folder, subfolder="text_encoder").eval()
    if part == "unet":
        return UNet2DConditionModel.from_pretrained(args.folder, subfolder="unet").eval()
    if part == "kl":
        return AutoencoderKL.from_pretrained(args.folder, subfolder="vae").eval()
    return AutoencoderTiny().eval()

def pytorch(part, network, layout):
    latents = torch.randn(args.batch, 4, 64, 64).to(memory_format=layout)
    context = torch.randn(args.batch, 77, 1024)
    tokens = torch.ones(args.batch, 77, dtype=torch.long)
    begun = time.perf_counter()
    with torch.no_grad():
        if part == "text_encoder":
            network(tokens)
        elif part == "unet":
            network(latents, 999, context)
        else:
            network.decode(latents)
    return time.perf_counter() - begun

peers = {"ours": Process(HERE.parents[1] / "target/release/parts", args.folder)}
if args.candle:
    peers["candle"] = Process(HERE / "candle/target/release/candle-parts", args.folder)
layouts = {"PyTorch": torch.contiguous_format, "PyTorch, channels last": torch.channels_last}
results = {}
for part in args.parts:
    network = load(part)
    times = {}
    for name, layout in layouts.items():
        if part == "text_encoder" and layout is torch.channels_last:
            continue
        network = network.to(memory_format=layout)
        for round in range(args.rounds + 1):
            turns = [(name, lambda: pytorch(part, network, layout))]
            turns += [(peer, lambda run=run: run(part)) for peer, run in peers.items() if not (peer == "candle" and part == "taesd")]
            for who, run in turns:
                seconds = run()
                if round:
                    times.setdefault(who, []).append(seconds)
    del network
    results[part] = times
    best = min(statistics.median(v) for who, v in times.items() if who.startswith("PyTorch"))
    ours = statistics.median(times["ours"])
    for who, v in times.items():
        print(f"{part:13} {who:23} {statistics.median(v):7.3f} s [{min(v):.3f}, {max(v):.3f}]", flush=True)
    line = f"{part:13} ours is {best / ours:.2f} times as fast as PyTorch"
    if "candle" in times:
        line += f", {statistics.median(times['candle']) / ours:.2f} times as fast as candle"
    print(line, flush=True)
if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
