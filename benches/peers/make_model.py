"""Writes a randomly initialised model of SD-Turbo's size in diffusers' layout: 866 M + 340 M + 84 M parameters.

    python make_model.py FOLDER [--dtype f16|f32] [--family turbo|sd15] [--clip] [--halved] [--vocabulary bpe_simple_vocab_16e6.txt.gz]

--family sd15 selects Stable Diffusion 1.5 instead: 860 M + 123 M + 84 M parameters, with 1x1 convolutions as projections.
--clip adds ViT-B/32, for the clamped CLIP loss. --halved halves the width of the denoiser and the side of its latents:
217 M parameters, which can be trained without a large GPU.
"""
import argparse, gzip, json, pathlib, tempfile, torch
from diffusers import AutoencoderKL, AutoencoderTiny, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--dtype", choices=["f16", "f32"], default="f32")
parser.add_argument("--family", choices=["turbo", "sd15"], default="turbo")
parser.add_argument("--clip", action="store_true")
parser.add_argument("--halved", action="store_true")
parser.add_argument("--vocabulary", type=pathlib.Path,
                    default=pathlib.Path(__file__).parents[2] / "crates/clip/data/bpe_simple_vocab_16e6.txt.gz")
args = parser.parse_args()
torch.manual_seed(0)

def tokenizer():
    merges = gzip.open(args.vocabulary, "rt").read().split("\n")[1:48895]
    clear = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(b) for b in clear] + [chr(256 + i) for i in range(256 - len(clear))]
    words = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="!")

share = 2 if args.halved else 1
sizes = dict(sample_size=64 // share, block_out_channels=[c // share for c in (320, 640, 1280, 1280)])
if args.family == "sd15":
    text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                                                hidden_act="quick_gelu", projection_dim=768))
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, **sizes)
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
else:
    text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                                                hidden_act="gelu", projection_dim=512))
    unet = UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, **sizes)
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
                                       steps_offset=1)
vae = AutoencoderKL(block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4,
                    up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4, layers_per_block=2, sample_size=512)
pipeline = StableDiffusionPipeline(vae, text_encoder, tokenizer(), unet, scheduler, None, None, requires_safety_checker=False)
if args.dtype == "f16":
    pipeline.to(torch.float16)
pipeline.save_pretrained(args.folder)
tiny = AutoencoderTiny()
tiny.to(torch.float16 if args.dtype == "f16" else torch.float32).save_pretrained(args.folder / "taesd")
if args.clip:
    CLIPModel(CLIPConfig()).save_pretrained(args.folder / "clip")
