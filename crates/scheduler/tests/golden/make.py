"""Writes samplers.json, swapped.json and defaults.json: runs of diffusers' schedulers on a scalar with an artificial network.

The network returns 0.3·x + 0.1·cos(t), so that every step depends on all previous ones. Noise drawn along the way is
0.5, -0.8, 0.5, … A run that starts in the middle starts at 0.7·clean + 1.1·noise of its first step. swapped.json contains
`Other.from_config(File.from_config(file).config)` for every pair of classes, with files that omit fields or spell them
out, and defaults.json the defaults of every class with betas. Run with diffusers 0.42: python make.py
"""
import inspect, itertools, json, math, pathlib, diffusers, torch
from unittest.mock import patch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       LCMScheduler, PNDMScheduler)

HERE = pathlib.Path(__file__).parent
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
KINDS = {"ddim": (DDIMScheduler, dict(clip_sample=False)), "euler": (EulerDiscreteScheduler, {}),
         "euler-ancestral": (EulerAncestralDiscreteScheduler, {}), "dpm-solver": (DPMSolverMultistepScheduler, {}),
         "pndm": (PNDMScheduler, dict(skip_prk_steps=True)), "lcm": (LCMScheduler, {})}
cases = []

def run(kind, spacing, offset, steps, one=False, prediction="epsilon", zero_snr=False, skipped=0):
    scheduler_class, more = KINDS[kind]
    config = BETAS | more | dict(timestep_spacing=spacing, steps_offset=offset, prediction_type=prediction)
    if kind in ("ddim", "pndm", "lcm"):
        config["set_alpha_to_one"] = one
    if zero_snr:
        config["rescale_betas_zero_snr"] = True
    scheduler = scheduler_class(**config)
    file = json.loads(scheduler.to_json_string().replace("-Infinity", "null"))
    trace(scheduler, file, kind, steps, skipped)

def trace(scheduler, file, kind, steps, skipped=0):
    scheduler_class = type(scheduler)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[skipped:]
    if skipped:
        scheduler.set_begin_index(skipped) if hasattr(scheduler, "set_begin_index") else None
        one_of = lambda x: torch.tensor([x], dtype=torch.float64)
        x = scheduler.add_noise(one_of(0.7), one_of(1.1), timesteps[:1]).double()
    else:
        x = torch.tensor([0.7], dtype=torch.float64) * float(scheduler.init_noise_sigma)
    noise = itertools.cycle([0.5, -0.8])
    draw = lambda shape, **_: torch.full(tuple(shape), next(noise), dtype=torch.float64)
    trace = [float(x)]
    with patch(f"{scheduler_class.__module__}.randn_tensor", draw, create=True):
        for t in timesteps:
            given = scheduler.scale_model_input(x, t)
            output = 0.3 * given + 0.1 * math.cos(float(t))
            x = scheduler.step(output, t, x).prev_sample.double()
            trace.append(float(x))
    cases.append(dict(config=file, kind=kind, steps=steps, skipped=skipped, timesteps=[float(t) for t in timesteps], trace=trace))

for kind, spacing, offset, steps, one in [
    ("ddim", "leading", 1, 25, False), ("ddim", "leading", 0, 7, True), ("ddim", "trailing", 1, 4, False),
    ("ddim", "trailing", 1, 1, False), ("ddim", "linspace", 1, 10, False),
    ("euler", "trailing", 1, 1, False), ("euler", "trailing", 1, 4, False), ("euler", "leading", 1, 25, False),
    ("euler", "linspace", 1, 10, False),
    ("euler-ancestral", "trailing", 1, 1, False), ("euler-ancestral", "trailing", 1, 4, False),
    ("euler-ancestral", "leading", 1, 25, False), ("euler-ancestral", "linspace", 0, 10, False),
    ("dpm-solver", "linspace", 1, 20, False), ("dpm-solver", "leading", 1, 7, False), ("dpm-solver", "trailing", 1, 4, False),
    ("dpm-solver", "trailing", 1, 1, False),
    ("pndm", "leading", 1, 25, False), ("pndm", "leading", 1, 2, False), ("pndm", "leading", 1, 1, True),
    ("pndm", "trailing", 0, 6, False), ("pndm", "linspace", 0, 10, False),
    ("lcm", "leading", 0, 1, True), ("lcm", "leading", 0, 4, True), ("lcm", "leading", 0, 7, True), ("lcm", "leading", 0, 50, False),
]:
    run(kind, spacing, offset, steps, one)
for kind in KINDS:
    run(kind, "leading", 1, 10, prediction="v_prediction")
for kind in ("ddim", "euler", "euler-ancestral", "dpm-solver", "lcm"):
    run(kind, "trailing", 0, 5, prediction="v_prediction", zero_snr=True)
run("euler", "linspace", 0, 7, prediction="v_prediction")
for kind in KINDS:
    run(kind, "leading", 1, 10, skipped=4)
(HERE / "samplers.json").write_text(json.dumps(cases, indent=1) + "\n")

cases = []
BY_NAME = {n: getattr(diffusers, n) for n in (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler")}
SILENT = [{}, BETAS, BETAS | dict(steps_offset=1, set_alpha_to_one=False, clip_sample=False, skip_prk_steps=True),
          BETAS | dict(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False, skip_prk_steps=True),
          BETAS | dict(timestep_spacing="leading", steps_offset=3, set_alpha_to_one=True, skip_prk_steps=True, clip_sample=True, clip_sample_range=0.4)]
for (name, file_class), (kind, (asked, _)), file in itertools.product(BY_NAME.items(), KINDS.items(), SILENT):
    file = {"_class_name": name} | file
    scheduler = asked.from_config(file_class.from_config(file).config)
    # Unsupported in this crate: Runge-Kutta starts, clipping in LCM, and zero terminal SNR for PNDM, which diffusers ignores.
    if kind == "pndm" and (not scheduler.config.skip_prk_steps or file.get("rescale_betas_zero_snr")) or kind == "lcm" and scheduler.config.clip_sample:
        continue
    trace(scheduler, file, kind, 3)
for case in cases:
    case["trace"] = [float(f"{x:.9g}") for x in case["trace"]]
(HERE / "swapped.json").write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")

FIELDS = ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing", "steps_offset",
          "set_alpha_to_one", "rescale_betas_zero_snr", "original_inference_steps", "timestep_scaling", "clip_sample",
          "clip_sample_range", "skip_prk_steps"]
defaults = {n: {k: p.default for k, p in inspect.signature(c.__init__).parameters.items() if k in FIELDS} for n, c in BY_NAME.items()}
(HERE / "defaults.json").write_text(json.dumps(defaults, indent=1) + "\n")
