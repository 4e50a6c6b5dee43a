"""Writes twins/: toy-sized models in every layout of the family, and the images that diffusers generates with them.

Weights are random and exact in f16. Everything is computed in f32; noise is drawn by PyTorch's CPU generators with the
seeds 3 and 4, one generator per image. Files not written by diffusers itself (single files of the original training code,
TAESD's own files) are converted back by diffusers' code before they are used.
Run with diffusers 0.42, transformers 5.23 and torch 2.15: python twins.py
"""
import json, pathlib, re, shutil, torch
from diffusers import (AutoencoderKL, AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler,
                       EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler,
                       StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel)
from diffusers.loaders import single_file_utils as ldm
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from toy import LENGTH, PROMPTS, SCHEDULE, perturbed, tokenizer

HERE = pathlib.Path(__file__).parent / "twins"
shutil.rmtree(HERE, ignore_errors=True)
HERE.mkdir()
SEEDS = [3, 4]
NEGATIVE = ["a"] * 2
torch.manual_seed(7)

def halved(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model

def text(size, act, end):
    config = CLIPTextConfig(vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                            projection_dim=16, max_position_embeddings=LENGTH, hidden_act=act, bos_token_id=size - 2, eos_token_id=end)
    return halved(perturbed(CLIPTextModel(config)))

def unet(**options):
    options = dict(sample_size=8, block_out_channels=[8, 16], down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                   up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], layers_per_block=1, attention_head_dim=[1, 2],
                   cross_attention_dim=16, use_linear_projection=True, norm_num_groups=4) | options
    return halved(perturbed(UNet2DConditionModel(**options)))

def vae(channels=(4, 8)):
    levels = len(channels)
    return halved(perturbed(AutoencoderKL(
        block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4, norm_num_groups=2, sample_size=16)))

def model(scheduler, pad="!", act="gelu", end=None, unet=None, vae=None):
    made, size = tokenizer(pad)
    pipeline = StableDiffusionPipeline(vae, text(size, act, end or size - 1), made, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]

def pixels(images):
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

class Goldens:
    def __init__(self, pipeline):
        self.pipeline, self.tensors = pipeline, {}

    @torch.no_grad()
    def put(self, name, latents):
        vae = self.pipeline.vae
        images = vae.decode(latents / vae.config.scaling_factor).sample
        self.tensors[f"{name}.latents"] = latents.float().contiguous()
        self.tensors[f"{name}.pixels"] = pixels(images)
        if name == "one-step":
            # 8-bit values would hide the effect of the autoencoder's attention.
            self.tensors["one-step.images"] = images

    def sampled(self, name, scheduler=None, unet=None, **options):
        old = self.pipeline.scheduler, self.pipeline.unet
        self.pipeline.scheduler = scheduler or old[0]
        self.pipeline.unet = unet or old[1]
        self.put(name, self.pipeline(PROMPTS, negative_prompt=NEGATIVE, generator=generators(), output_type="latent", **options).images)
        self.pipeline.scheduler, self.pipeline.unet = old

    @torch.no_grad()
    def one_step(self, name="one-step", unet=None):
        pipeline = self.pipeline
        unet = unet or pipeline.unet
        scheduler = pipeline.scheduler
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators()])
        context = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        output = unet(noise, 999, context).sample
        alpha = scheduler.alphas_cumprod.double()[999].sqrt()
        sigma = (1 - alpha**2).sqrt()
        if scheduler.config.prediction_type == "epsilon":
            latents = (noise - sigma * output) / alpha
        else:
            latents = alpha * noise - sigma * output
        self.put(name, latents.float())

    def image_to_image(self, name, strength, scheduler=None, **options):
        components = self.pipeline.components | (dict(scheduler=scheduler) if scheduler else {})
        pipeline = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        if "image" not in self.tensors:
            self.tensors["image"] = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.put(name, pipeline(PROMPTS, image=self.tensors["image"], strength=strength, negative_prompt=NEGATIVE, generator=generators(),
                                output_type="latent", **options).images)

    @torch.no_grad()
    def one_step_from_image(self, name, strength):
        """SwiftBrush's rule at the timestep that corresponds to the strength: noise on the image's latents, one call."""
        pipeline, draws = self.pipeline, generators()
        image = self.tensors["image"]
        posterior = torch.cat([pipeline.vae.encode(image[i : i + 1]).latent_dist.sample(draws[i]) for i in range(2)])
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in draws])
        timestep = round(strength * 1000) - 1
        alpha = pipeline.scheduler.alphas_cumprod.double()[timestep].sqrt()
        sigma = (1 - alpha**2).sqrt()
        noisy = (alpha * posterior * pipeline.vae.config.scaling_factor + sigma * noise).float()
        output = pipeline.unet(noisy, timestep, pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]).sample
        self.put(name, ((noisy - sigma * output) / alpha).float())

    def save(self, name):
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, HERE / f"{name}.golden.safetensors")

def keep(path, keys):
    """A configuration as it was written before newer options existed."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k in keys.split() or k.startswith("_")}, indent=2))

# Rename to the original training code.

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}

def ldm_unet(model):
    layers = model.config.layers_per_block
    attends = [len(getattr(block, "attentions", [])) > 0 for block in model.up_blocks]
    out = {}
    for key, value in model.state_dict().items():
        rules = [
            (r"time_embedding\.linear_(\d)\.(.*)", lambda m: f"time_embed.{2 * int(m[1]) - 2}.{m[2]}"),
            (r"conv_in\.(.*)", lambda m: f"input_blocks.0.0.{m[1]}"),
            (r"conv_norm_out\.(.*)", lambda m: f"out.0.{m[1]}"), (r"conv_out\.(.*)", lambda m: f"out.2.{m[1]}"),
            (r"mid_block\.resnets\.(\d)\.(\w+)\.(.*)", lambda m: f"middle_block.{2 * int(m[1])}.{RESNET[m[2]]}.{m[3]}"),
            (r"mid_block\.attentions\.0\.(.*)", lambda m: f"middle_block.1.{m[1]}"),
            (r"down_blocks\.(\d)\.resnets\.(\d)\.(\w+)\.(.*)", lambda m: f"input_blocks.{(layers + 1) * int(m[1]) + int(m[2]) + 1}.0.{RESNET[m[3]]}.{m[4]}"),
            (r"down_blocks\.(\d)\.attentions\.(\d)\.(.*)", lambda m: f"input_blocks.{(layers + 1) * int(m[1]) + int(m[2]) + 1}.1.{m[3]}"),
            (r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", lambda m: f"input_blocks.{(layers + 1) * (int(m[1]) + 1)}.0.op.{m[2]}"),
            (r"up_blocks\.(\d)\.resnets\.(\d)\.(\w+)\.(.*)", lambda m: f"output_blocks.{(layers + 1) * int(m[1]) + int(m[2])}.0.{RESNET[m[3]]}.{m[4]}"),
            (r"up_blocks\.(\d)\.attentions\.(\d)\.(.*)", lambda m: f"output_blocks.{(layers + 1) * int(m[1]) + int(m[2])}.1.{m[3]}"),
            (r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", lambda m: f"output_blocks.{(layers + 1) * int(m[1]) + layers}.{1 + attends[int(m[1])]}.conv.{m[2]}"),
        ]
        (new,) = [make(m) for pattern, make in rules if (m := re.fullmatch(pattern, key))]
        out["model.diffusion_model." + new] = value
    back = ldm.convert_ldm_unet_checkpoint(dict(out), dict(model.config))
    assert_same(back, model.state_dict())
    return out

def ldm_vae(model):
    last = len(model.config.block_out_channels) - 1
    out = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm").replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        key = re.sub(r"mid_block\.attentions\.0\.to_(.)", r"mid.attn_1.\1", key)
        if ".mid.attn_1." in key and value.ndim == 2:
            value = value[:, :, None, None]
        key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", key)
        out["first_stage_model." + key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = value
    assert_same(ldm.convert_ldm_vae_checkpoint(dict(out), dict(model.config)), model.state_dict())
    return out

LAYER = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}

def open_clip(model, prefix):
    """Renames to open_clip, with the last layer and the projection, which Stable Diffusion does not use."""
    source = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    out = {"positional_embedding": source["embeddings.position_embedding.weight"], "token_embedding.weight": source["embeddings.token_embedding.weight"]}
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = source[f"final_layer_norm.{kind}"]
        for layer in range(model.config.num_hidden_layers):
            old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            out[f"{new}attn.in_proj_{kind}"] = torch.cat([source[f"{old}self_attn.{p}_proj.{kind}"] for p in "qkv"])
            for theirs, ours in LAYER.items():
                out[f"{new}{ours}.{kind}"] = source[f"{old}{theirs}.{kind}"]
    last = model.config.num_hidden_layers
    out |= {k.replace("resblocks.0.", f"resblocks.{last}."): torch.randn_like(v).half().float() for k, v in out.items() if "resblocks.0." in k}
    out |= {"text_projection": torch.randn(16, 16).half().float(), "logit_scale": torch.tensor(2.0)}
    out = {prefix + k: v for k, v in out.items()}
    names = {k for k in model.state_dict()}
    nested = any(k.startswith("text_model.") for k in names)
    back = ldm.convert_open_clip_checkpoint(model, dict(out), prefix=prefix)
    back = {k if nested else k.removeprefix("text_model."): v for k, v in back.items()}
    assert_same({k: v for k, v in back.items() if k in names}, model.state_dict())
    return out

def assert_same(found, expected):
    expected = {k: v for k, v in expected.items() if "position_ids" not in k}
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key].reshape(value.shape), value), key

def half(tensors):
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}

# Stable Diffusion 1.5: 1×1 convolutions around transformers, a single number of heads, configurations of 2022, early names in
# the autoencoder, weights in f16 files; and as a pickle of the training code.
sd15 = model(PNDMScheduler(**SCHEDULE, skip_prk_steps=True), "<|endoftext|>", "quick_gelu",
             unet=unet(use_linear_projection=False, attention_head_dim=2, layers_per_block=2), vae=vae())
sd15.to(torch.float16).save_pretrained(HERE / "sd15", variant="fp16")
sd15.to(torch.float32)
keep(HERE / "sd15/unet/config.json", "act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim down_block_types "
     "downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor norm_eps norm_num_groups out_channels "
     "sample_size up_block_types")
keep(HERE / "sd15/vae/config.json", "act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block norm_num_groups "
     "out_channels sample_size up_block_types")
path = HERE / "sd15/vae/diffusion_pytorch_model.fp16.safetensors"
EARLY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
early = load_file(path)
for new, old in EARLY.items():
    early = {k.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for k, v in early.items()}
save_file(early, path)
assert_same(AutoencoderKL.from_pretrained(HERE / "sd15/vae", variant="fp16", torch_dtype=torch.float32).state_dict(), sd15.vae.state_dict())
words = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in sd15.text_encoder.state_dict().items()}
words = {f"cond_stage_model.transformer.{k}": v for k, v in words.items()}
words["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
training = {"first_stage_model.loss.logvar": torch.zeros(()), "model_ema.decay": torch.tensor(0.99), "betas": torch.zeros(1000)}
torch.save({"state_dict": half(ldm_unet(sd15.unet) | ldm_vae(sd15.vae) | words | training), "global_step": 470000, "epoch": 3,
            "callbacks": {"checkpoint": {"best_model_score": torch.tensor(0.1)}}}, HERE / "sd15.ckpt")
goldens = Goldens(sd15)
goldens.one_step()
goldens.sampled("pndm", num_inference_steps=25, guidance_scale=7.5)
leading = SCHEDULE | dict(timestep_spacing="leading")
goldens.sampled("euler-ancestral", EulerAncestralDiscreteScheduler(**leading), num_inference_steps=25, guidance_scale=7.5)
goldens.sampled("lcm", LCMScheduler(**leading, set_alpha_to_one=False), num_inference_steps=4, guidance_scale=7.5)
goldens.sampled("dpm-solver", DPMSolverMultistepScheduler(**leading), num_inference_steps=25, guidance_scale=7.5)
goldens.image_to_image("image-pndm", 0.6, num_inference_steps=25, guidance_scale=7.5)
goldens.image_to_image("image-euler-ancestral", 0.6, EulerAncestralDiscreteScheduler(**leading), num_inference_steps=10, guidance_scale=7.5)
goldens.image_to_image("image-dpm-solver", 0.75, DPMSolverMultistepScheduler(**leading), num_inference_steps=10, guidance_scale=7.5)
goldens.save("sd15")

# Stable Diffusion 2.1: velocity, here with a schedule that ends in pure noise; the denoiser in shards; as one file.
sd21 = model(DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction", timestep_spacing="trailing",
                           rescale_betas_zero_snr=True), unet=unet(), vae=vae())
sd21.to(torch.float16).save_pretrained(HERE / "sd21")
sd21.unet.save_pretrained(HERE / "sd21/unet", max_shard_size="60KB")
(HERE / "sd21/unet/diffusion_pytorch_model.safetensors").unlink()
assert (HERE / "sd21/unet/diffusion_pytorch_model.safetensors.index.json").exists()
sd21.to(torch.float32)
save_file(half(ldm_unet(sd21.unet) | ldm_vae(sd21.vae) | open_clip(sd21.text_encoder, "cond_stage_model.model.")), HERE / "sd21.safetensors",
          metadata={"modelspec.prediction_type": "v"})
goldens = Goldens(sd21)
goldens.one_step()
goldens.sampled("ddim", num_inference_steps=25, guidance_scale=7.5)
sd21.scheduler = DDIMScheduler.from_config(sd21.scheduler.config, rescale_betas_zero_snr=False, timestep_spacing="leading")
for name, kind in [("pndm", PNDMScheduler), ("euler", EulerDiscreteScheduler), ("dpm-solver", DPMSolverMultistepScheduler)]:
    scheduler = kind(**SCHEDULE, prediction_type="v_prediction", timestep_spacing="leading", **(dict(skip_prk_steps=True) if name == "pndm" else {}))
    goldens.sampled(name, scheduler, num_inference_steps=25, guidance_scale=7.5)
goldens.save("sd21")

# SD-Turbo: written by torch.save, with TAESD in its own files; as one file of the newer training code; and a SwiftBrush
# student, which is only a denoiser.
turbo = model(EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"), unet=unet(), vae=vae())
turbo.to(torch.float16).save_pretrained(HERE / "sd-turbo", safe_serialization=False)
turbo.to(torch.float32)
(HERE / "sd-turbo/text_encoder").joinpath("pytorch_model.bin").exists() or torch.save(
    half(turbo.text_encoder.state_dict()), HERE / "sd-turbo/text_encoder/pytorch_model.bin")
(HERE / "sd-turbo/text_encoder/model.safetensors").unlink(missing_ok=True)
save_file(half(ldm_unet(turbo.unet) | ldm_vae(turbo.vae) | open_clip(turbo.text_encoder, "conditioner.embedders.0.model.")), HERE / "sd-turbo.safetensors")
tiny = halved(perturbed(AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))))
(HERE / "sd-turbo/taesd").mkdir()
tiny.save_config(HERE / "sd-turbo/taesd")
torch.save(half({k.removeprefix("encoder.layers."): v for k, v in tiny.state_dict().items() if k.startswith("encoder.")}), HERE / "sd-turbo/taesd/taesd_encoder.pth")
own = {k.removeprefix("decoder.layers."): v for k, v in tiny.state_dict().items() if k.startswith("decoder.")}
save_file(half({f"{int(k.split('.')[0]) + 1}.{k.split('.', 1)[1]}": v for k, v in own.items()}), HERE / "sd-turbo/taesd/taesd_decoder.safetensors")
student = unet()
save_file(half(student.state_dict()), HERE / "swiftbrush.safetensors")
goldens = Goldens(turbo)
goldens.one_step()
goldens.one_step("swiftbrush", student)
goldens.sampled("euler-1", num_inference_steps=1, guidance_scale=0.0)
goldens.sampled("euler", num_inference_steps=25, guidance_scale=7.5)
# Stable Diffusion 2.1-base is this with another scheduler.
goldens.sampled("pndm", PNDMScheduler(**SCHEDULE, skip_prk_steps=True), num_inference_steps=25, guidance_scale=7.5)
goldens.image_to_image("image-euler", 0.5, num_inference_steps=2, guidance_scale=0.0)
goldens.one_step_from_image("image-one-step", 0.7)
with torch.no_grad():
    goldens.tensors["taesd.decoded"] = tiny.decode(goldens.tensors["one-step.latents"][..., :4, :4]).sample
    goldens.tensors["taesd.encoded"] = tiny.encode(goldens.tensors["image"]).latents
goldens.save("sd-turbo")

# Shapes that no published model has: a single block, and blocks of unequal depth with a list of heads and odd image sizes.
one = model(DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False), vae=vae((4, 4, 8)),
            unet=unet(block_out_channels=[8], down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], layers_per_block=1, attention_head_dim=4))
one.to(torch.float16).save_pretrained(HERE / "one-block")
one.to(torch.float32)
goldens = Goldens(one)
goldens.one_step()
goldens.sampled("ddim", num_inference_steps=25, guidance_scale=7.5)
goldens.save("one-block")

unequal = model(DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"), vae=vae(),
                unet=unet(block_out_channels=[4, 8, 12], down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                          up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], layers_per_block=[1, 3, 2], attention_head_dim=[1, 4, 3]))
unequal.to(torch.float16).save_pretrained(HERE / "unequal")
unequal.to(torch.float32)
goldens = Goldens(unequal)
goldens.one_step()
goldens.sampled("ddim", num_inference_steps=25, guidance_scale=7.5, height=24, width=40)
with torch.no_grad():
    latents = torch.randn(1, 4, 21, 13)
    unequal.vae.enable_tiling()
    unequal.vae.tile_latent_min_size, unequal.vae.tile_sample_min_size = 8, 16
    goldens.tensors["tiled.latents"] = latents
    goldens.tensors["tiled.images"] = unequal.vae.decode(latents / unequal.vae.config.scaling_factor).sample
goldens.save("unequal")
