"""Writes a model of SD-Turbo's size with random weights in f16, in diffusers' layout: 866 M + 340 M + 84 M parameters, 2.6 GB.

    python make_full.py FOLDER

Like benches/peers/make_model.py --dtype f16, but needs the standard library alone. Weights repeat after a million values.
"""
import gzip, json, math, pathlib, random, shutil, struct, sys

folder = pathlib.Path(sys.argv[1])
root = pathlib.Path(__file__).parents[3]
rng = random.Random(0)
PERIOD = 1_000_003
normal = [rng.gauss(0, 1) for _ in range(PERIOD)]

def values(scale, cache={}):
    """Normal values of a standard deviation, as f16."""
    if scale not in cache:
        cache[scale] = struct.pack(f"<{PERIOD}e", *(scale * x for x in normal))
    return cache[scale]

def write(component, name, config, tensors):
    (folder / component).mkdir(parents=True)
    (folder / component / "config.json").write_text(json.dumps(config, indent=2))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in tensors.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(header).encode()
    with open(folder / component / name, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for key, shape in tensors.items():
            count = math.prod(shape)
            if len(shape) == 1:
                # Norms keep their input, and biases are zero.
                file.write(struct.pack("<e", float("norm" in key and key.endswith("weight"))) * count)
                continue
            # The nearest power of two to 1/√inputs; half of it for residual branches would not matter.
            block = values(2.0 ** round(math.log2(math.prod(shape[1:]) ** -0.5)) if "embedding" not in key else 2.0**-6)
            for start in range(0, count, PERIOD):
                file.write(block[: 2 * min(PERIOD, count - start)])
    print(f"{component}: {end / 2e6:.0f} M parameters")

def layer(tensors, name, shape, bias=True):
    tensors[f"{name}.weight"] = shape
    if bias:
        tensors[f"{name}.bias"] = shape[:1]

def norm(tensors, name, width):
    layer(tensors, name, [width])

def resnet(tensors, name, inputs, outputs, time):
    norm(tensors, f"{name}.norm1", inputs)
    layer(tensors, f"{name}.conv1", [outputs, inputs, 3, 3])
    if time:
        layer(tensors, f"{name}.time_emb_proj", [outputs, time])
    norm(tensors, f"{name}.norm2", outputs)
    layer(tensors, f"{name}.conv2", [outputs, outputs, 3, 3])
    if inputs != outputs:
        layer(tensors, f"{name}.conv_shortcut", [outputs, inputs, 1, 1])

def transformer(tensors, name, width, context=1024):
    norm(tensors, f"{name}.norm", width)
    layer(tensors, f"{name}.proj_in", [width, width])
    block = f"{name}.transformer_blocks.0"
    for number, inputs in [(1, width), (2, context)]:
        norm(tensors, f"{block}.norm{number}", width)
        layer(tensors, f"{block}.attn{number}.to_q", [width, width], bias=False)
        layer(tensors, f"{block}.attn{number}.to_k", [width, inputs], bias=False)
        layer(tensors, f"{block}.attn{number}.to_v", [width, inputs], bias=False)
        layer(tensors, f"{block}.attn{number}.to_out.0", [width, width])
    norm(tensors, f"{block}.norm3", width)
    layer(tensors, f"{block}.ff.net.0.proj", [8 * width, width])
    layer(tensors, f"{block}.ff.net.2", [width, 4 * width])
    layer(tensors, f"{name}.proj_out", [width, width])

def unet():
    widths, tensors = [320, 640, 1280, 1280], {}
    layer(tensors, "conv_in", [320, 4, 3, 3])
    layer(tensors, "time_embedding.linear_1", [1280, 320])
    layer(tensors, "time_embedding.linear_2", [1280, 1280])
    before = 320
    for i, width in enumerate(widths):
        for j in range(2):
            resnet(tensors, f"down_blocks.{i}.resnets.{j}", width if j else before, width, 1280)
            if i < 3:
                transformer(tensors, f"down_blocks.{i}.attentions.{j}", width)
        if i < 3:
            layer(tensors, f"down_blocks.{i}.downsamplers.0.conv", [width, width, 3, 3])
        before = width
    for j in range(2):
        resnet(tensors, f"mid_block.resnets.{j}", 1280, 1280, 1280)
    transformer(tensors, "mid_block.attentions.0", 1280)
    for i, width in enumerate(widths[::-1]):
        skipped = widths[::-1][min(i + 1, 3)]
        for j in range(3):
            inputs = (width if j else before) + (skipped if j == 2 else width)
            resnet(tensors, f"up_blocks.{i}.resnets.{j}", inputs, width, 1280)
            if i > 0:
                transformer(tensors, f"up_blocks.{i}.attentions.{j}", width)
        if i < 3:
            layer(tensors, f"up_blocks.{i}.upsamplers.0.conv", [width, width, 3, 3])
        before = width
    norm(tensors, "conv_norm_out", 320)
    layer(tensors, "conv_out", [4, 320, 3, 3])
    config = {
        "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4, "flip_sin_to_cos": True, "freq_shift": 0,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": widths, "layers_per_block": 2, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "norm_num_groups": 32, "norm_eps": 1e-5, "downsample_padding": 1, "use_linear_projection": True,
    }
    write("unet", "diffusion_pytorch_model.fp16.safetensors", config, tensors)

def middle(tensors, name):
    resnet(tensors, f"{name}.resnets.0", 512, 512, 0)
    norm(tensors, f"{name}.attentions.0.group_norm", 512)
    for part in ["to_q", "to_k", "to_v", "to_out.0"]:
        layer(tensors, f"{name}.attentions.0.{part}", [512, 512])
    resnet(tensors, f"{name}.resnets.1", 512, 512, 0)

def vae():
    widths, tensors = [128, 256, 512, 512], {}
    layer(tensors, "encoder.conv_in", [128, 3, 3, 3])
    before = 128
    for i, width in enumerate(widths):
        for j in range(2):
            resnet(tensors, f"encoder.down_blocks.{i}.resnets.{j}", width if j else before, width, 0)
        if i < 3:
            layer(tensors, f"encoder.down_blocks.{i}.downsamplers.0.conv", [width, width, 3, 3])
        before = width
    middle(tensors, "encoder.mid_block")
    norm(tensors, "encoder.conv_norm_out", 512)
    layer(tensors, "encoder.conv_out", [8, 512, 3, 3])
    layer(tensors, "quant_conv", [8, 8, 1, 1])
    layer(tensors, "post_quant_conv", [4, 4, 1, 1])
    layer(tensors, "decoder.conv_in", [512, 4, 3, 3])
    middle(tensors, "decoder.mid_block")
    for i, width in enumerate(widths[::-1]):
        for j in range(3):
            resnet(tensors, f"decoder.up_blocks.{i}.resnets.{j}", width if j else before, width, 0)
        if i < 3:
            layer(tensors, f"decoder.up_blocks.{i}.upsamplers.0.conv", [width, width, 3, 3])
        before = width
    norm(tensors, "decoder.conv_norm_out", 128)
    layer(tensors, "decoder.conv_out", [3, 128, 3, 3])
    config = {
        "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
        "block_out_channels": widths, "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": 512, "scaling_factor": 0.18215, "act_fn": "silu",
    }
    write("vae", "diffusion_pytorch_model.fp16.safetensors", config, tensors)

def text_encoder():
    tensors = {"text_model.embeddings.token_embedding.weight": [49408, 1024], "text_model.embeddings.position_embedding.weight": [77, 1024]}
    for i in range(23):
        name = f"text_model.encoder.layers.{i}"
        for part in ["q", "k", "v", "out"]:
            layer(tensors, f"{name}.self_attn.{part}_proj", [1024, 1024])
        norm(tensors, f"{name}.layer_norm1", 1024)
        layer(tensors, f"{name}.mlp.fc1", [4096, 1024])
        layer(tensors, f"{name}.mlp.fc2", [1024, 4096])
        norm(tensors, f"{name}.layer_norm2", 1024)
    norm(tensors, "text_model.final_layer_norm", 1024)
    config = {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": 512,
    }
    write("text_encoder", "model.fp16.safetensors", config, tensors)

def tokenizer():
    (folder / "tokenizer").mkdir(parents=True)
    merges = gzip.open(root / "crates/clip/data/bpe_simple_vocab_16e6.txt.gz", "rt").read().split("\n")[1:48895]
    clear = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(b) for b in clear] + [chr(256 + i) for i in range(256 - len(clear))]
    words = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer/special_tokens_map.json").write_text(json.dumps(special))
    config = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))

folder.mkdir(parents=True)
tokenizer()
shutil.copytree(root / "examples/miniature/model/scheduler", folder / "scheduler")
unet()
vae()
text_encoder()
