"""A checkpoint of Stable Diffusion 3's shape with random weights, as diffusers saves it: few layers, narrow, all of its
kinds of blocks."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTHS = (16, 24)  # of the two CLIP states: together narrower than the joint ones, so that padding shows
PROJECTIONS = (20, 12)
JOINT = 48
START, END, BANG = "<|startoftext|>", "<|endoftext|>", "!"
MERGES = ("t h", "th e</w>", "s u", "su n</w>", "r e", "re d</w>", "s e", "se a</w>")
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def write(folder: Path, *, t5: bool) -> None:
    """In the layout of diffusers, half precision."""
    torch.manual_seed(3)
    vocabulary = _clip_vocabulary()
    modules: dict[str, torch.nn.Module] = {
        "text_encoder": _clip(vocabulary, WIDTHS[0], PROJECTIONS[0], layers=3, activation="quick_gelu"),
        "text_encoder_2": _clip(vocabulary, WIDTHS[1], PROJECTIONS[1], layers=3, activation="gelu"),
        "transformer": SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=JOINT,
            caption_projection_dim=24,
            pooled_projection_dim=sum(PROJECTIONS),
            out_channels=16,
            pos_embed_max_size=96,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }
    if t5:
        tokenizer = t5_tokenizer()
        modules["text_encoder_3"] = _t5(len(tokenizer))
        tokenizer.save_pretrained(folder / "tokenizer_3")
    for name, module in modules.items():
        _randomise(module)
        module.half().save_pretrained(folder / name)
    _write_clip_tokenizer(folder / "tokenizer", vocabulary, pad=END)
    _write_clip_tokenizer(folder / "tokenizer_2", vocabulary, pad=BANG)
    classes = {
        name: ["transformers" if "text" in name else "diffusers", type(m).__name__] for name, m in modules.items()
    }
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusion3Pipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"] if t5 else [None, None],
            "text_encoder_3": [None, None],
            **classes,
        },
    )
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)


def _clip(
    vocabulary: dict[str, int], width: int, projection: int, layers: int, activation: str
) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=projection,
            num_hidden_layers=layers,
            num_attention_heads=2,
            hidden_act=activation,
            bos_token_id=vocabulary[START],
            eos_token_id=2,  # as published; transformers then looks for the largest id
            pad_token_id=1,
        )
    )


def _t5(vocabulary_size: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=JOINT,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _randomise(module: torch.nn.Module) -> None:
    """Every matrix keeps the variance of what it is fed, every norm's gain is near 1, biases are small."""
    for name, tensor in module.named_parameters():
        if tensor.ndim > 1:
            gain = 0.4 if name == "decoder.conv_out.weight" else 1.0  # grey pictures: clipping would hide differences
            values = torch.randn(tensor.shape) * gain / tensor[0].numel() ** 0.5
        else:
            values = torch.randn(tensor.shape) * 0.05 + (1.0 if name.endswith("weight") else 0.0)
        tensor.data.copy_(values)


def _clip_vocabulary() -> dict[str, int]:
    letters = list(bytes_to_unicode().values())
    merged = [merge.replace(" ", "") for merge in MERGES]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    return {word: index for index, word in enumerate(words)}


def _write_clip_tokenizer(folder: Path, vocabulary: dict[str, int], pad: str) -> None:
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad, "model_max_length": 77}
    _write_json(folder / "vocab.json", vocabulary)
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **special})
    folder.joinpath("merges.txt").write_text("\n".join(("#version: 0.2", *MERGES)) + "\n")


def t5_tokenizer() -> T5Tokenizer:
    """Unigram, as SentencePiece's: some words, and letters for all others."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁red", "▁house", "▁a", "▁by", "▁the", "▁sea", "ea", "ou", "th", "s,"]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scores += [(piece, -10.0 + len(piece)) for piece in pieces]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
