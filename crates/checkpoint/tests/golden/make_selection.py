"""Writes selection.json: the weight file that diffusers and transformers choose among several.

Every file in a folder contains a different constant, so the loaded model reveals which file was read.
Run with diffusers 0.42, transformers 5.23 and torch 2.15: python make_selection.py
"""
import itertools, json, logging, pathlib, shutil, tempfile, warnings
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
HERE = pathlib.Path(__file__).parent
DIFFUSERS = AutoencoderTiny(encoder_block_out_channels=(4,), decoder_block_out_channels=(4,), num_encoder_blocks=(1,), num_decoder_blocks=(1,), latent_channels=2)
TRANSFORMERS = CLIPTextModel(CLIPTextConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=4))


def write(folder, name, state):
    """Writes one candidate: a file, or an index and its shards."""
    if name.endswith(".json"):
        end = "bin" if ".bin." in name else "safetensors"
        keys, weight_map = sorted(state), {}
        for shard in range(2):
            file = f"shard-{name}-{shard}.{end}"
            part = {key: state[key] for key in keys[shard::2]}
            save_file(part, folder / file, {"format": "pt"}) if end == "safetensors" else torch.save(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    elif name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name, {"format": "pt"})


def taken(model, names, variant):
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        model.save_pretrained(folder)
        for file in folder.glob("*model*"):
            file.unlink()
        for value, name in enumerate(names, 1):
            write(folder, name, {key: torch.full_like(tensor, value / 8).contiguous() for key, tensor in model.state_dict().items()})
        loaded = type(model).from_pretrained(folder, variant=variant)
        value = next(loaded.parameters()).flatten()[0].item()
        return names[round(8 * value) - 1]
    except (OSError, ValueError):
        return None
    finally:
        shutil.rmtree(folder)


def cases():
    stem = "diffusion_pytorch_model"
    plain = [f"{stem}.safetensors.index.json", f"{stem}.safetensors", f"{stem}.bin"]
    fp16 = [f"{stem}.safetensors.index.fp16.json", f"{stem}.safetensors.fp16.index.json", f"{stem}.fp16.safetensors", f"{stem}.fp16.bin"]
    yield "vae", DIFFUSERS, plain, None
    yield "vae", DIFFUSERS, fp16 + plain[1:2], "fp16"
    plain = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    fp16 = ["model.fp16.safetensors", "model.safetensors.index.fp16.json", "pytorch_model.fp16.bin", "pytorch_model.bin.index.fp16.json"]
    yield "text_encoder", TRANSFORMERS, plain, None
    yield "text_encoder", TRANSFORMERS, fp16 + plain[:1], "fp16"


found = []
for component, model, names, variant in cases():
    for count in range(1, len(names) + 1):
        for subset in itertools.combinations(names, count):
            if variant is None or any(variant in name for name in subset):
                found.append({"component": component, "files": subset, "variant": variant, "taken": taken(model, subset, variant)})
                if found[-1]["taken"] is None:
                    print("refused", found[-1])
(HERE / "selection.json").write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
print(len(found), "cases")
