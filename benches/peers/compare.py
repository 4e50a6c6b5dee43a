"""Compares the example `generate` with diffusers, or with itself on another folder (--against, such as one in int8): loads a model
and generates an image with each, alternating.

    cargo build --release --example generate
    python compare.py FOLDER [--runs 5] [--dtype f32] [--device cpu|cuda] [--binary target/release/examples/generate] [--tiny]
                      [--cold] [--steps N] [--guidance G] [--image FILE --strength S] [--warm-up 1] [--against FOLDER]
                      [--json FILE]
                      [-- options of generate]

Each run is a separate process on the same files. The first, which warm the page cache, are not counted (--warm-up); --cold
drops the page cache before each run and needs root. Memory is the peak resident set size. Prints the median of the runs, with
minimum and maximum in brackets, and the ratios.
"""
import argparse, json, os, pathlib, platform, re, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).parents[2]
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--dtype", default="f32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--binary", default=ROOT / "target/release/examples/generate")
parser.add_argument("--cold", action="store_true")
parser.add_argument("--tiny", action="store_true", help="decode with the component taesd")
parser.add_argument("--steps", type=int)
parser.add_argument("--guidance", type=float)
parser.add_argument("--image")
parser.add_argument("--strength", type=float)
parser.add_argument("--warm-up", type=int, default=1)
parser.add_argument("--against")
parser.add_argument("--json")
# argparse consumes a positional with `*` together with the folder, before the options between them.
end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
args = parser.parse_args(sys.argv[1:end])
OPTIONS = sys.argv[end + 1 :]

SHARED = [text for name in ("steps", "guidance", "image", "strength") if (value := getattr(args, name)) is not None
          for text in (f"--{name}", str(value))]

def run(command):
    if args.cold:
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if status:
        sys.exit(f"{command} failed:\n{text}")
    return dict(text=text, all=time.perf_counter() - begun, peak=usage.ru_maxrss / 2**20)

def ours(model=args.folder):
    with tempfile.TemporaryDirectory() as folder:
        device = ["--device", args.device] if args.device != "cpu" else []
        result = run([args.binary, "--model", model, "--rng", "cpu", "--dtype", args.dtype, "--no-hashes", *device,
                      "--output", f"{folder}/picture.png", *(["--vae", "tiny"] if args.tiny else []), *SHARED, *OPTIONS,
                      "a photo of a cat"])
    result["load"] = float(re.search(r"loaded in ([\d.]+) s", result["text"])[1])
    result["generate"] = float(re.search(r"pictures, ([\d.]+) s", result["text"])[1])
    return result

def diffusers():
    result = run([sys.executable, pathlib.Path(__file__).with_name("generate.py"), args.folder, "--dtype", args.dtype,
                  "--device", args.device, *(["--tiny"] if args.tiny else []), *SHARED])
    result["load"] = float(re.search(r"loaded in ([\d.]+) s", result["text"])[1])
    result["generate"] = float(re.search(r"generated in ([\d.]+) s", result["text"])[1])
    return result

peer, other = (args.against, lambda: ours(args.against)) if args.against else ("diffusers", diffusers)
runs = [(ours(), other()) for _ in range(args.warm_up + args.runs)][args.warm_up:]
report = dict(machine=platform.processor() or platform.machine(), folder=args.folder, dtype=args.dtype, peer=peer, runs=args.runs)
for name, unit in [("load", "s"), ("generate", "s"), ("all", "s"), ("peak", "GiB")]:
    a, b = ([pair[i][name] for pair in runs] for i in (0, 1))
    ratios = [x / y for x, y in zip(a, b)]
    line = lambda values: f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
    print(f"{name:8} {unit:3}  ours {line(a)}  {peer} {line(b)}  ratio {line(ratios)}", flush=True)
    report[name] = dict(ours=a, peer=b, ratio=statistics.median(ratios))
if args.json:
    pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
