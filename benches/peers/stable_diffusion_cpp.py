"""Compares the example `generate` with stable-diffusion.cpp: generates an image in one step with each, alternating.

    pip download --no-deps --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python  # includes the sources
    cmake -S vendor/stable-diffusion.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON && cmake --build build
    cargo build --release --workspace --examples
    python stable_diffusion_cpp.py build/bin/sd-cli FILE [--runs 3] [--json FILE] [-- options of sd-cli]

FILE is a single-file checkpoint of SD 2.1's size, with the tensor names of the original training code. Both programs read the same
file, and stable-diffusion.cpp uses one thread per CPU; the first run of each is not counted. Prints the medians of the times that
the programs report, with minimum and maximum in brackets, and the ratios.
"""
import argparse, json, os, pathlib, re, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).parents[2]
parser = argparse.ArgumentParser()
parser.add_argument("cli")
parser.add_argument("file")
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--json")
parser.add_argument("options", nargs="*")
args = parser.parse_args()

def run(command):
    begun = time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(f"{command} failed:\n{result.stdout}")
    return result.stdout, time.perf_counter() - begun

def ours(folder):
    text, seconds = run([ROOT / "target/release/examples/generate", "--model", args.file, "--family", "sd-turbo", "--no-hashes",
                         "--output", f"{folder}/ours.png", "a photo of a cat"])
    return dict(all=seconds, generate=float(re.search(r"pictures, ([\d.]+) s", text)[1]))

def cpp(folder):
    text, seconds = run([args.cli, "-m", args.file, "-p", "a photo of a cat", "--steps", "1", "--cfg-scale", "1", "-W", "512", "-H", "512",
                         "-t", str(os.cpu_count()), "--sampling-method", "euler", "--prediction", "eps", "-v",
                         "-o", f"{folder}/theirs.png", *args.options])
    part = lambda pattern: float(re.search(pattern, text)[1])
    return dict(all=seconds, generate=part(r"generate_image completed in ([\d.]+)s"), text=part(r"get_learned_condition completed, taking ([\d.]+)"),
                unet=part(r"sampling completed, taking ([\d.]+)"), decoder=part(r"decode_first_stage completed, taking ([\d.]+)"))

with tempfile.TemporaryDirectory() as folder:
    runs = [(ours(folder), cpp(folder)) for _ in range(args.runs + 1)][1:]
line = lambda values: f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
for name in ["generate", "all"]:
    a, b = ([pair[i][name] for pair in runs] for i in (0, 1))
    print(f"{name:8} s  ours {line(a)}  stable-diffusion.cpp {line(b)}  ratio {line([y / x for x, y in zip(a, b)])}", flush=True)
for name in ["text", "unet", "decoder"]:
    print(f"{name:8} s  stable-diffusion.cpp {line([pair[1][name] for pair in runs])}")
if args.json:
    pathlib.Path(args.json).write_text(json.dumps(runs, indent=1) + "\n")
