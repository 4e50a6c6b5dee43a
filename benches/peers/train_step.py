"""Benchmarks one SwiftBrush v2 distillation step in swiftbrush and in a plain PyTorch loop that does the same work, alternating.

    cargo build --release --workspace --bins
    python make_model.py FOLDER --clip [--halved]
    python train_step.py FOLDER [--scheme a|b] [--batch 1] [--precision f32|bf16] [--device cpu|cuda] [--rounds 5]
        [--no-checkpointing] [--frozen f32|f16] [--in-turn] [--json FILE]

Both keep weights, gradients, AdamW moments and averaged weights in f32 and run the networks in --precision (torch.autocast in
PyTorch). A step updates the student (scheme A: all weights; B: adapters, with the clamped CLIP loss through the tiny decoder) and
the fake teacher's adapters. Both recompute activations block by block on the way back (diffusers' and transformers' gradient
checkpointing) unless --no-checkpointing is given. PyTorch uses scaled_dot_product_attention and fused AdamW, and its fake teacher
shares the teacher's weights.
--in-turn runs all rounds of one side in a process of its own, and then those of the other, for models of which two do not fit.
Warm-up rounds are not counted. Prints medians with minimum and maximum in brackets, the ratio of the medians, and the peak resident
memory of each side, or PyTorch's peak GPU memory.
"""
import argparse, contextlib, copy, json, os, pathlib, re, statistics, subprocess, sys, time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--scheme", choices=["a", "b"], default="a")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--warm-up", type=int, default=1)
parser.add_argument("--no-checkpointing", action="store_true")
parser.add_argument("--frozen", choices=["f32", "f16"], default="f32", help="storage of our frozen weights; PyTorch's are in f32")
parser.add_argument("--in-turn", action="store_true")
parser.add_argument("--side", choices=["ours", "PyTorch"], help=argparse.SUPPRESS)
parser.add_argument("--compile", action="store_true", help="compile PyTorch's denoisers with torch.compile")
parser.add_argument("--binary", default=str(pathlib.Path(__file__).parents[2] / "target/release/steps"))
parser.add_argument("--json")
args = parser.parse_args()
torch.manual_seed(0)

LAST, GUIDANCE, THRESHOLD, CLIP_WEIGHT, DECAY = 999, 4.5, 0.35, 0.1, 0.9999
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1).to(args.device)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1).to(args.device)

class PyTorch:
    def __init__(self):
        def load(kind, name):
            return kind.from_pretrained(args.folder, subfolder=name).to(args.device).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(args.folder, subfolder="tokenizer")
        self.text_encoder = load(CLIPTextModel, "text_encoder")
        self.student, self.fake = (load(UNet2DConditionModel, "unet") for _ in range(2))
        adapters = dict(init_lora_weights="gaussian")
        self.fake.add_adapter(LoraConfig(r=64, lora_alpha=128, target_modules=["to_q", "to_v"], **adapters))
        if args.scheme == "a":
            self.student.requires_grad_(True)
        else:
            self.student.add_adapter(LoraConfig(r=256, lora_alpha=512, target_modules=["to_q", "to_k", "to_v"], **adapters))
            self.clip, self.decoder = load(CLIPModel, "clip"), load(AutoencoderTiny, "taesd")
        if not args.no_checkpointing:
            self.student.enable_gradient_checkpointing()
            self.fake.enable_gradient_checkpointing()
            if args.scheme == "b":
                self.decoder.enable_gradient_checkpointing()
                # transformers' layers recompute in training mode alone; they have no dropout.
                self.clip.gradient_checkpointing_enable()
                self.clip.train()
        trained = lambda network: [p for p in network.parameters() if p.requires_grad]
        self.parameters = [trained(self.student), trained(self.fake)]
        self.optimizers = [torch.optim.AdamW(p, lr=rate, weight_decay=0, fused=True)
                           for p, rate in zip(self.parameters, (1e-6, 1e-3))]
        self.average = [p.detach().clone() for p in self.parameters[0]]
        abar = DDPMScheduler.from_pretrained(args.folder, subfolder="scheduler").alphas_cumprod.to(args.device)
        self.alpha, self.sigma = (x.sqrt().reshape(-1, 1, 1, 1) for x in (abar, 1 - abar))
        config = self.fake.config
        self.shape = [args.batch, config.in_channels, config.sample_size, config.sample_size]
        self.null = self.encode([""])
        if args.compile:
            for network in (self.student, self.fake):
                network.compile()

    def tokens(self, prompts):
        return self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(args.device)

    def encode(self, prompts):
        with torch.no_grad():
            return self.text_encoder(self.tokens(prompts)).last_hidden_state

    def clip_loss(self, latents, prompts):
        images = self.decoder.decode(latents).sample.float() / 2 + 0.5
        images = F.interpolate(images.clamp(0, 1), 224, mode="bicubic", antialias=True)
        images = self.clip.get_image_features(pixel_values=(images - MEAN) / STD)
        with torch.no_grad():
            texts = self.clip.get_text_features(input_ids=self.tokens(prompts))
        images, texts = (x if torch.is_tensor(x) else x.pooler_output for x in (images, texts))
        return (THRESHOLD - F.cosine_similarity(images.float(), texts.float())).clamp_min(0).mean()

    def update(self, which, loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters[which], 1.0)
        self.optimizers[which].step()
        self.optimizers[which].zero_grad(set_to_none=True)

    def step(self, prompts):
        randn = lambda: torch.randn(self.shape, device=args.device)
        randint = lambda low, high: torch.randint(low, high, [args.batch], device=args.device)
        alpha, sigma = self.alpha, self.sigma
        amp = torch.autocast(args.device.split(":")[0], torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()
        with amp:
            context, noise = self.encode(prompts), randn()
            last = torch.full([args.batch], LAST, device=args.device)
            x0 = (noise - sigma[LAST] * self.student(noise, last, context).sample.float()) / alpha[LAST]
            with torch.no_grad():
                t = randint(20, 981)
                noisy = (alpha[t] * x0 + sigma[t] * randn()).repeat(2, 1, 1, 1)
                both = torch.cat([context, self.null.expand_as(context)])
                def guided(network):
                    cond, uncond = network(noisy, t.repeat(2), both).sample.float().chunk(2)
                    return uncond + GUIDANCE * (cond - uncond)
                fake = guided(self.fake)
                self.fake.disable_adapters()
                gradient = sigma[t] ** 2 * (guided(self.fake) - fake)
                self.fake.enable_adapters()
            loss = 0.5 * F.mse_loss(x0, (x0 - gradient).detach())
            if args.scheme == "b":
                loss = loss + CLIP_WEIGHT * self.clip_loss(x0, prompts)
        self.update(0, loss)
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters[0]], 1 - DECAY)
        with amp:
            t, noise = randint(0, 1000), randn()
            predicted = self.fake(alpha[t] * x0.detach() + sigma[t] * noise, t, context).sample.float()
            loss = (alpha[t] ** 2 * (predicted - noise) ** 2).mean()
        self.update(1, loss)
        return loss.item()

def peak(process):
    """The peak resident memory of a process in GiB."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20

def pytorch():
    loop, prompts = PyTorch(), ["a photo of a cat"] * args.batch
    def timed():
        begun = time.perf_counter()
        loop.step(prompts)
        return time.perf_counter() - begun
    return timed, os.getpid()

def ours():
    checkpointing = "plain" if args.no_checkpointing else "checkpointed"
    command = [args.binary, args.folder, args.scheme, str(args.batch), args.precision, checkpointing, args.frozen]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    def timed():
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())
    return timed, process.pid

def measure(sides):
    """Seconds of each round and peak memory of some sides, round by round."""
    started = {who: start() for who, start in sides.items()}
    times = {who: [] for who in sides}
    for round in range(args.warm_up + args.rounds):
        for who, (run, _) in started.items():
            seconds = run()
            print(f"{who} {seconds:.1f} s", file=sys.stderr, flush=True)
            if round >= args.warm_up:
                times[who].append(seconds)
    return {who: (times[who], peak(process)) for who, (_, process) in started.items()}

SIDES = {"ours": ours, "PyTorch": pytorch}
if args.side:
    print(json.dumps(measure({args.side: SIDES[args.side]})))
    raise SystemExit
if args.in_turn:
    results = {}
    for who in SIDES:
        found = subprocess.run([sys.executable, *sys.argv, "--side", who], stdout=subprocess.PIPE, text=True, check=True)
        results.update(json.loads(found.stdout.splitlines()[-1]))
else:
    results = measure(SIDES)
times = {who: found for who, (found, _) in results.items()}
for who, v in times.items():
    print(f"{who:8} {statistics.median(v):8.4f} s [{min(v):.4f}, {max(v):.4f}], {results[who][1]:.2f} GiB resident at most", flush=True)
medians = [statistics.median(times[who]) for who in ("PyTorch", "ours")]
print(f"PyTorch / ours {medians[0] / medians[1]:.2f}")
if args.device.startswith("cuda"):
    print(f"PyTorch's peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
if args.json:
    memory = {who: found for who, (_, found) in results.items()}
    data = dict(vars(args), folder=str(args.folder), times=times, memory=memory)
    pathlib.Path(args.json).write_text(json.dumps(data, indent=1) + "\n")
