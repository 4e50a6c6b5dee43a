"""Writes samplers.json: runs of diffusers' schedulers on one number with a made-up network.

The network answers 0.3·x + 0.1·cos(t), so that every step depends on all before it. Run with diffusers 0.42:
python make.py
"""
import json, math, pathlib, torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

HERE = pathlib.Path(__file__).parent
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
cases = []
for kind, spacing, offset, steps, one in [
    ("ddim", "leading", 1, 25, False), ("ddim", "leading", 0, 7, True), ("ddim", "trailing", 1, 4, False),
    ("ddim", "trailing", 1, 1, False), ("ddim", "linspace", 1, 10, False),
    ("euler", "trailing", 1, 1, False), ("euler", "trailing", 1, 4, False), ("euler", "leading", 1, 25, False),
    ("euler", "linspace", 1, 10, False),
    ("dpm", "linspace", 1, 20, False), ("dpm", "leading", 1, 7, False), ("dpm", "trailing", 1, 4, False),
    ("dpm", "trailing", 1, 1, False),
    ("pndm", "leading", 1, 25, False), ("pndm", "leading", 1, 2, False), ("pndm", "leading", 1, 1, True),
    ("pndm", "trailing", 0, 6, False), ("pndm", "linspace", 0, 10, False),
]:
    config = BETAS | dict(timestep_spacing=spacing, steps_offset=offset)
    if kind == "ddim":
        scheduler = DDIMScheduler(**config, set_alpha_to_one=one, clip_sample=False)
    elif kind == "dpm":
        scheduler = DPMSolverMultistepScheduler(**config)
    elif kind == "pndm":
        scheduler = PNDMScheduler(**config, set_alpha_to_one=one, skip_prk_steps=True)
    else:
        scheduler = EulerDiscreteScheduler(**config)
    scheduler.set_timesteps(steps)
    x = torch.tensor([0.7], dtype=torch.float64) * float(scheduler.init_noise_sigma)
    trace = []
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        noise = 0.3 * given + 0.1 * math.cos(float(t))
        x = scheduler.step(noise, t, x).prev_sample.double()
        trace.append(float(x))
    file = BETAS | {"_class_name": type(scheduler).__name__, "prediction_type": "epsilon", "timestep_spacing": spacing,
                    "steps_offset": offset, "set_alpha_to_one": one}
    cases.append(dict(config=file, kind=kind, steps=steps, timesteps=[float(t) for t in scheduler.timesteps], trace=trace))
(HERE / "samplers.json").write_text(json.dumps(cases, indent=1) + "\n")
