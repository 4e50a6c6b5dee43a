"""Writes adapters/: one set of adapters for twins/sd15 in every layout, and the images diffusers generates with each file.

The set has linear layers, 1×1 and 3×3 convolutions, denoiser and text encoder, and ranks and α that differ between modules;
a second set uses rsLoRA. Files in layouts that no library writes any more are derived from the first by renaming, and all but
one of them are loaded by diffusers before it generates. Run after twins.py: python adapters.py
"""
import json, pathlib, re, shutil, tempfile, torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from toy import HERE, PROMPTS

OUT = HERE / "adapters"
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir()
torch.manual_seed(11)
goldens = {}

def fresh():
    pipeline = StableDiffusionPipeline.from_pretrained(HERE / "twins/sd15", variant="fp16", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

def drawn(model):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter) * 0.3).half().float()

@torch.no_grad()
def paint(name, pipeline, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    latents = pipeline(PROMPTS, negative_prompt=["a"] * 2, generator=generators, num_inference_steps=5, guidance_scale=4.0, output_type="latent", **options).images
    goldens.setdefault(name, latents)
    assert torch.allclose(goldens[name], latents, atol=2e-4, rtol=1e-4), (name, (goldens[name] - latents).abs().max())

UNET = LoraConfig(
    r=2, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv_shortcut",
                                       "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in"],
    rank_pattern={"down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k": 3}, alpha_pattern={"mid_block.resnets.0.conv1": 7})
TEXT = LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "out_proj", "fc1"])

pipeline = fresh()
paint("plain", pipeline)
pipeline.unet.add_adapter(UNET)
pipeline.text_encoder.add_adapter(TEXT)
drawn(pipeline.unet)
drawn(pipeline.text_encoder)
paint("adapted", pipeline)
paint("half", pipeline, cross_attention_kwargs={"scale": 0.5})
states = {"unet": get_peft_model_state_dict(pipeline.unet), "text_encoder": get_peft_model_state_dict(pipeline.text_encoder)}

def metadata(config):
    # Remove the local path of the model.
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items() if k != "base_model_name_or_path"}

with tempfile.TemporaryDirectory() as folder:
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
        unet_lora_adapter_metadata=metadata(pipeline.unet.peft_config["default"]),
        text_encoder_lora_adapter_metadata=metadata(pipeline.text_encoder.peft_config["default"]))
    shutil.copy(f"{folder}/pytorch_lora_weights.safetensors", OUT / "diffusers.safetensors")

def loaded(name, golden="adapted"):
    pipeline = fresh()
    pipeline.load_lora_weights(OUT, weight_name=name)
    paint(golden, pipeline)

loaded("diffusers.safetensors")

def alpha(component, module):
    config = {"unet": UNET, "text_encoder": TEXT}[component]
    return config.alpha_pattern.get(module, config.lora_alpha)

# kohya's, by diffusers' converter, which does not know α.
both = {f"{component}.{k}": v for component, state in states.items() for k, v in state.items()}
kohya = convert_state_dict_to_kohya(dict(both))
kohya = {k.replace("lora_te1_encoder_", "lora_te_text_model_encoder_"): v for k, v in kohya.items()}
for key in [k for k in both if ".lora_A." in k]:
    component, module = key.removesuffix(".lora_A.weight").split(".", 1)
    flat = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[component] + module.replace(".", "_")
    assert f"{flat}.alpha" in kohya, flat
    kohya[f"{flat}.alpha"] = torch.tensor(float(alpha(component, module)))
save_file({k: v.contiguous() for k, v in kohya.items()}, OUT / "kohya.safetensors", metadata={"ss_network_dim": "2", "ss_v2": "False"})
loaded("kohya.safetensors")

# The same in the names of the original training code, numbered as in twins.py (diffusers does not read these for 1.5).
RESNET = {"norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}
def ldm(key):
    rules = [
        (r"lora_unet_conv_in\.(.*)", lambda m: f"lora_unet_input_blocks_0_0.{m[1]}"),
        (r"lora_unet_mid_block_resnets_(\d)_(\w+)\.(.*)", lambda m: f"lora_unet_middle_block_{2 * int(m[1])}_{RESNET[m[2]]}.{m[3]}"),
        (r"lora_unet_mid_block_attentions_0_(.*)", lambda m: f"lora_unet_middle_block_1_{m[1]}"),
        (r"lora_unet_down_blocks_(\d)_resnets_(\d)_(\w+)\.(.*)", lambda m: f"lora_unet_input_blocks_{3 * int(m[1]) + int(m[2]) + 1}_0_{RESNET[m[3]]}.{m[4]}"),
        (r"lora_unet_down_blocks_(\d)_attentions_(\d)_(.*)", lambda m: f"lora_unet_input_blocks_{3 * int(m[1]) + int(m[2]) + 1}_1_{m[3]}"),
        (r"lora_unet_down_blocks_(\d)_downsamplers_0_conv\.(.*)", lambda m: f"lora_unet_input_blocks_{3 * int(m[1]) + 3}_0_op.{m[2]}"),
        (r"lora_unet_up_blocks_(\d)_resnets_(\d)_(\w+)\.(.*)", lambda m: f"lora_unet_output_blocks_{3 * int(m[1]) + int(m[2])}_0_{RESNET[m[3]]}.{m[4]}"),
        (r"lora_unet_up_blocks_(\d)_attentions_(\d)_(.*)", lambda m: f"lora_unet_output_blocks_{3 * int(m[1]) + int(m[2])}_1_{m[3]}"),
        (r"lora_unet_up_blocks_(\d)_upsamplers_0_conv\.(.*)", lambda m: f"lora_unet_output_blocks_{3 * int(m[1]) + 2}_{1 if m[1] == '0' else 2}_conv.{m[2]}"),
    ]
    new = [make(m) for pattern, make in rules if (m := re.fullmatch(pattern, key))]
    assert len(new) == 1 or "lora_unet" not in key and "time_embedding" not in key, key
    return new[0] if new else key
renamed = {ldm(k): v.contiguous() for k, v in kohya.items()}
save_file(renamed, OUT / "kohya-ldm.safetensors")

# diffusers in 2023 and earlier: no α, so it is multiplied into the first factor.
def without_alpha(rename):
    out = {}
    for key, value in both.items():
        component, rest = key.split(".", 1)
        module, factor = rest.split(".lora_")
        if factor.startswith("B"):
            rank = both[key.replace("lora_B", "lora_A")].shape[0]
            value = value * (alpha(component, module) / rank)
        if new := rename(component, module, {"A": "down", "B": "up"}[factor[0]]):
            out[new] = value.contiguous()
    return out
text_name = lambda module, factor: f"text_encoder.{module}.lora_linear_layer.{factor}.weight"
save_file(without_alpha(lambda c, m, f: f"unet.{m}.lora.{f}.weight" if c == "unet" else text_name(m, f)), OUT / "diffusers-lora.safetensors")
loaded("diffusers-lora.safetensors")
def processor(component, module, factor):
    if component == "text_encoder":
        return None
    m = re.fullmatch(r"(.*\.attn[12])\.(to_\w+)(\.0)?", module)
    return m and f"unet.{m[1]}.processor.{m[2]}_lora.{factor}.weight"
old = without_alpha(processor)
save_file(old, OUT / "diffusers-processor.safetensors")
torch.save({k.removeprefix("unet."): v for k, v in old.items()}, OUT / "pytorch_lora_weights.bin")
loaded("diffusers-processor.safetensors", "attention")

# A folder written by PEFT, with rsLoRA.
pipeline = fresh()
adapted = get_peft_model(pipeline.unet, LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["attn1.to_q", "conv2"],
                                                  alpha_pattern={r"up_blocks\.\d.*\.to_q": 5}))
drawn(adapted)
paint("rslora", pipeline)
adapted.save_pretrained(OUT / "peft")
(OUT / "peft/README.md").unlink(missing_ok=True)
save_file({k: v.contiguous() for k, v in goldens.items()}, HERE / "adapters.safetensors")
