"""Measures the peak resident memory of distillation at full size, beside what `distill` predicts.

    cargo build --release --workspace --example distill
    python make_model.py FOLDER --clip
    python train_memory.py FOLDER --scheme a|b [--moments f32|8bit] [--accumulation 1] [--steps 2] [--limit 20] [--runs RUNS]

Teacher and student start with the same weights. A run is stopped after --steps steps, which saves it; the same command then resumes
it for as many more, to its end, which writes the student as a model, once with its current and once with its averaged weights.
Batch 1, networks in f32, frozen weights in f16, averages in a file. Prints a row of a table for each of the two: the prediction, the
peak of all resident pages, the peak of those that no file backs (weights are mapped from files while they are loaded), and seconds
per step. A process that takes more than --limit GiB of its own memory fails, and is the first that the system would end.
"""
import argparse, json, pathlib, re, resource, signal, subprocess, tempfile, time

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--scheme", choices=["a", "b"], default="b")
parser.add_argument("--moments", choices=["f32", "8bit"], default="f32")
parser.add_argument("--accumulation", type=int, default=1)
parser.add_argument("--steps", type=int, default=2, help="at least 2")
parser.add_argument("--limit", type=float, default=20)
parser.add_argument("--runs", type=pathlib.Path, help="folder for the run [default: a temporary one, which is removed]")
parser.add_argument("--binary", default=str(pathlib.Path(__file__).parents[2] / "target/release/examples/distill"))
args = parser.parse_args()
GIB = 1 << 30

def careful():
    limit = int(args.limit * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    pathlib.Path("/proc/self/oom_score_adj").write_text("1000")

def status(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return {key: int(value) * 1024 for key, value in re.findall(r"(\w+):\s+(\d+) kB", text)}

def n_steps(work):
    log = work / "run/log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0

def distill(work, steps, *options):
    """Runs the program up to a step, and returns its output and the peaks of all resident pages and of those without a file."""
    recipe = f"""scheme = "{args.scheme}"
steps = {2 * args.steps}
batch = 1
accumulation = {args.accumulation}
frozen_weights = "f16"
averages = "file"
adamw.moments = "{args.moments}"
save_every = 1000
keep_last = 1
preview_every = 0
"""
    (work / "recipe.toml").write_text(recipe)
    (work / "prompts.txt").write_text("a photo of a cat\n")
    command = [args.binary, "--teacher", args.folder, "--student", args.folder, "--prompts", work / "prompts.txt",
               "--recipe", work / "recipe.toml", "--run", work / "run", *options]
    command += ["--clip", args.folder] if args.scheme == "b" else []
    with open(work / "output.txt", "w") as output:
        process = subprocess.Popen(command, stderr=output, preexec_fn=careful)
        peaks, training, is_told = [0, 0], 0, False
        while process.poll() is None:
            if n_steps(work) == steps - 1 and steps == args.steps and not is_told:
                # It stops after its current step; a second signal would stop it at once.
                process.send_signal(signal.SIGTERM)
                is_told = True
            found = status(process)
            training = training if n_steps(work) >= steps else found.get("VmHWM", 0)
            peaks = [max(peaks[0], found.get("VmHWM", 0)), max(peaks[1], found.get("RssAnon", 0))]
            time.sleep(0.1)
    text = (work / "output.txt").read_text()
    if process.returncode != 0:
        raise SystemExit(f"{text}\nexit status {process.returncode}; peaks {peaks[0] / GIB:.2f} and {peaks[1] / GIB:.2f} GiB")
    if training < peaks[0]:
        print(f"peak before the end of the last step: {training / GIB:.2f} GiB", flush=True)
    return text, peaks

def seconds(work):
    lines = (work / "run/log.jsonl").read_text().splitlines()[-args.steps:]
    return ", ".join(f"{json.loads(line)['seconds']:.0f}" for line in lines)

with tempfile.TemporaryDirectory(dir=args.runs) as folder:
    work = pathlib.Path(folder)
    text, _ = distill(work, args.steps, "--dry-run")
    print(text, flush=True)
    planned = float(re.search(r"^sum +([\d.]+) GiB", text, re.M)[1])
    setting = f"{args.scheme.upper()}, moments in {args.moments}, accumulation {args.accumulation}"
    print("| | | plan, GiB | peak, GiB | of it not in files, GiB | s per step |\n|---|---|---|---|---|---|")
    for name, steps in [("start", args.steps), ("resumed", 2 * args.steps)]:
        _, (resident, own) = distill(work, steps)
        print(f"| {setting} | {name} | {planned:.2f} | {resident / GIB:.2f} | {own / GIB:.2f} | {seconds(work)} |", flush=True)
