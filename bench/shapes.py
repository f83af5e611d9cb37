"""Checkpoints with the values of the published config files and random weights; tiny ones that go the same way."""

import json
import math
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from export.weights import write_half

_LIKE = Path(__file__).resolve().parent.parent / "demo" / "checkpoints" / "sd15"  # whose tokenizer and schedule we take
_GAIN = 0.7  # less than keeps the variance, so that nothing grows through the many layers


@dataclass(frozen=True)
class Shape:
    """A checkpoint without weights."""

    pipeline: str
    parts: Mapping[str, tuple[type, Mapping[str, Any]]]  # class and config
    tokenizers: tuple[str, ...]
    step: dict[str, int]  # axis lengths of one denoising step at the default size, with guidance


_CLIP_L: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "eos_token_id": 2,  # as published: the end token is found as the largest id
}
_CLIP_G: Mapping[str, Any] = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_VAE: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_SD15_UNET: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SDXL_UNET: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

FULL: Mapping[str, Shape] = {
    "sd15": Shape(
        pipeline="StableDiffusionPipeline",
        parts={
            "text_encoder": (CLIPTextModel, _CLIP_L),
            "unet": (UNet2DConditionModel, _SD15_UNET),
            "vae": (AutoencoderKL, {**_VAE, "scaling_factor": 0.18215}),
        },
        tokenizers=("tokenizer",),
        step={"rows": 2, "height": 64, "width": 64, "tokens": 77},
    ),
    "sdxl": Shape(
        pipeline="StableDiffusionXLPipeline",
        parts={
            "text_encoder": (CLIPTextModel, _CLIP_L),
            "text_encoder_2": (CLIPTextModelWithProjection, _CLIP_G),
            "unet": (UNet2DConditionModel, _SDXL_UNET),
            "vae": (AutoencoderKL, {**_VAE, "scaling_factor": 0.13025, "force_upcast": True}),
        },
        tokenizers=("tokenizer", "tokenizer_2"),
        step={"rows": 2, "height": 128, "width": 128, "tokens": 77},
    ),
}


def tiny(name: str) -> Shape:
    """The same parts and blocks at a hundredth of the width."""
    full = FULL[name]
    clip = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    smaller: Mapping[str, Mapping[str, Any]] = {
        "text_encoder": {**clip, "projection_dim": 16},
        "text_encoder_2": {**clip, "projection_dim": 16},
        "vae": {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        "unet": {
            "block_out_channels": (8, 8, 16, 16)[: len(full.parts["unet"][1]["block_out_channels"])],
            "layers_per_block": 1,
            "transformer_layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16 * len(full.tokenizers),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
        },
    }
    parts = {part: (kind, {**config, **smaller[part]}) for part, (kind, config) in full.parts.items()}
    return Shape(full.pipeline, parts, full.tokenizers, {"rows": 2, "height": 16, "width": 24, "tokens": 77})


def write_checkpoint(shape: Shape, folder: Path) -> int:
    """In the layout of diffusers, one tensor in memory at a time; returns the number of parameters."""
    parameters = 0
    for part, (kind, config) in shape.parts.items():
        is_text = issubclass(kind, CLIPTextModel | CLIPTextModelWithProjection)
        with torch.device("meta"):  # shapes without memory
            module = kind(CLIPTextConfig(**config)) if is_text else kind(**config)
        sizes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        (module.config.save_pretrained if is_text else module.save_config)(folder / part)
        file = "model.safetensors" if is_text else "diffusion_pytorch_model.safetensors"
        write_half(sizes, (_random(name, size) for name, size in sizes.items()), folder / part / file)
        parameters += sum(map(math.prod, sizes.values()))
    for tokenizer in shape.tokenizers:
        shutil.copytree(_LIKE / "tokenizer", folder / tokenizer, dirs_exist_ok=True)
    schedule = json.loads((_LIKE / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": shape.pipeline}))
    return parameters


def _random(name: str, size: tuple[int, ...]) -> torch.Tensor:
    """Matrices by what they are fed, gains of norms 1, biases small; the same for the same name everywhere."""
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(size) > 1:
        return drawn.mul_(_GAIN / math.sqrt(math.prod(size[1:])))
    return drawn.mul_(0.05).add_(1.0 if name.endswith("weight") else 0.0)
