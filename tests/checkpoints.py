"""Checkpoints with random weights in the families' own shapes, as small as their topology allows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.convert_slow_tokenizer import bytes_to_unicode

from export.checkpoint import Checkpoint
from export.recipes import EngineRecipe, TemplateRecipe
from server.families.card import Card

MERGES = ("t h", "th e</w>", "s u", "su n</w>", "r e", "re d</w>", "i n", "in g</w>", "' s</w>", "1 2", "Ã ©")
START, END = "<|startoftext|>", "<|endoftext|>"

# The fields of a published checkpoint's scheduler that say how it was trained.
SCHEDULER: Mapping[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}
SDXL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    **SCHEDULER,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}

# SDXL's three levels and its refiner's four: their blocks, their conditioning, a hundredth of their channels.
SDXL_UNET: Mapping[str, Any] = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "norm_num_groups": 4,
    "cross_attention_dim": 16 + 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
}
REFINER_UNET: Mapping[str, Any] = {
    **SDXL_UNET,
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 1,
    "attention_head_dim": (1, 2, 4, 4),
    "cross_attention_dim": 24,
    "projection_class_embeddings_input_dim": 24 + 5 * 8,
}
# SSD-1B: layers left out here and there, and the middle without attention.
SSD_UNET: Mapping[str, Any] = {
    **SDXL_UNET,
    "transformer_layers_per_block": (1, 1, 1),
    "reverse_transformer_layers_per_block": ((2, 1), (1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",
}


def vocabulary() -> dict[str, int]:
    """CLIP's bytes, a few words and the two special tokens."""
    letters = list(bytes_to_unicode().values())
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in MERGES),
        START,
        END,
    ]
    return {word: index for index, word in enumerate(words)}


def write_sd15(folder: Path, in_channels: int = 4) -> None:
    """Stable Diffusion 1.5's; nine channels are an inpainting UNet's."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    vae = _vae(scaling_factor=0.18215, shift_factor=0.25)
    text_encoder = CLIPTextModel(_clip(16, 16, layers=3))
    for name, module in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        module.half().save_pretrained(folder / name)
    _write(folder, "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    scheduler = {"_class_name": "PNDMScheduler", **SCHEDULER, "prediction_type": "v_prediction"}
    _write(folder, "scheduler/scheduler_config.json", scheduler)
    write_tokenizer(folder / "tokenizer", END)


def write_sdxl(folder: Path, unet: Mapping[str, Any] = SDXL_UNET) -> None:
    """SDXL's base, or SSD-1B's with its UNet."""
    torch.manual_seed(1)
    modules = {
        "text_encoder": CLIPTextModel(_clip(16, 16, layers=3)),
        "text_encoder_2": CLIPTextModelWithProjection(_clip(24, 24, layers=4)),
        "unet": UNet2DConditionModel(**unet),
        "vae": _vae(scaling_factor=0.13025, force_upcast=True),
    }
    for name, module in modules.items():
        module.half().save_pretrained(folder / name)
    _write(folder, "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    _write(folder, "scheduler/scheduler_config.json", SDXL_SCHEDULER)
    write_tokenizer(folder / "tokenizer", END)
    write_tokenizer(folder / "tokenizer_2", "!")


def write_refiner(folder: Path) -> None:
    """SDXL's refiner, with what is read of it: its second text encoder and its autoencoder are the base's."""
    torch.manual_seed(2)
    UNet2DConditionModel(**REFINER_UNET).half().save_pretrained(folder / "unet")
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    }
    _write(folder, "model_index.json", index)
    _write(folder, "scheduler/scheduler_config.json", SDXL_SCHEDULER)


def write_safety_checker(folder: Path) -> None:
    """The safety checker's, alone: a tower of two layers. It removes nothing until its concepts are given."""
    torch.manual_seed(3)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 32,
        "initializer_factor": 8.0,  # so that pictures are told apart
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=24))
    for name, tensor in checker.state_dict().items():
        if name in ("concept_embeds", "special_care_embeds"):
            tensor.normal_()
    checker.half().save_pretrained(folder)


class OnlyChecker:
    """A recipe that renders nothing: with a safety checker beside it, that alone."""

    COMPONENTS: Mapping[str, type] = {}

    def __init__(self, card: Card) -> None:
        self._card = card

    def card(self, checkpoint: Checkpoint, name: str, title: str, prediction_type: str | None) -> Card:
        return self._card

    def recipes(self, checkpoint: Checkpoint, card: Card) -> tuple[EngineRecipe, ...]:
        return ()

    def templates(self, checkpoint: Checkpoint, card: Card) -> tuple[TemplateRecipe, ...]:
        return ()


def write_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's files."""
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad, "model_max_length": 77}
    _write(folder, "vocab.json", vocabulary())
    _write(folder, "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **special})
    folder.joinpath("merges.txt").write_text("\n".join(("#version: 0.2", *MERGES)) + "\n")


def change_json(path: Path, **fields: object) -> None:
    """Set fields of a JSON file; "absent" removes one."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def _clip(width: int, projection: int, layers: int) -> CLIPTextConfig:
    words = vocabulary()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=projection,
        bos_token_id=words[START],
        eos_token_id=words[END],
        pad_token_id=words[END],
    )


def _vae(**config: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        **config,
    )


def _write(folder: Path, name: str, content: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
