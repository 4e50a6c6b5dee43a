"""Writes lora.safetensors: PEFT adapters on a small U-Net, its output with and without them, and the same adapters in the
file formats of PEFT and diffusers.

Weights and inputs are rounded to f32; everything is then computed in f64 and stored as f32.
Run with diffusers 0.42, peft 0.21 and torch 2.15: python make.py
"""
import json, pathlib, shutil, tempfile, torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=[8, 16], down_block_types=["CrossAttnDownBlock2D"] * 2,
    up_block_types=["CrossAttnUpBlock2D"] * 2, layers_per_block=1, attention_head_dim=[1, 2],
    cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4).eval()
weights = {f"weights.{k}": v.clone() for k, v in unet.state_dict().items()}
config = dict(unet.config)
latents, timesteps, context = torch.randn(2, 4, 8, 8), torch.tensor([999.0, 17.0]), torch.randn(2, 5, 12)
run = lambda: unet(latents.double(), timesteps.double(), context.double()).sample.detach().float()
plain = unet.double() and run()
unet.float()
unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_out.0"]))
for name, parameter in unet.named_parameters():
    if "lora_" in name:
        parameter.data = torch.randn_like(parameter) * 0.3
state = get_peft_model_state_dict(unet)
unet.double()
adapted = run()
save_file({"latents": latents, "timesteps": timesteps, "context": context, "plain": plain, "adapted": adapted} | weights,
          HERE / "lora.safetensors", metadata={"config": json.dumps(config)})
unet.float()
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from diffusers.utils.peft_utils import get_adapter_name
with tempfile.TemporaryDirectory() as folder:
    metadata = unet.peft_config["default"].to_dict()
    metadata["target_modules"] = list(metadata["target_modules"])
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    shutil.copy(f"{folder}/pytorch_lora_weights.safetensors", HERE / "pytorch_lora_weights.safetensors")
    (HERE / "peft").mkdir(exist_ok=True)
    save_file({f"base_model.model.{k}": v for k, v in state.items()}, HERE / "peft/adapter_model.safetensors", metadata={"format": "pt"})
    (HERE / "peft/adapter_config.json").write_text(json.dumps({k: v for k, v in metadata.items() if isinstance(v, (str, int, float, list, bool, type(None)))}, default=str))
