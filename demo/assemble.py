"""Puts the trained parts together: diffusers folders of half-precision weights, as the published checkpoints lie."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.training.sd3 import SHIFT, with_projection

# SD 1.5's and SDXL's schedule, for a model that predicts v.
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}
# In the published files too, and not the schedulers' own: other schedulers made from the configuration read it.
FOREIGN = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}


def sd15(vae: Path, text: Path, tokenizer: Path, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """Without safety checker and feature extractor. SD 1.5's own configuration names no timestep spacing, so that every
    scheduler takes its own: `write` leaves it out."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(text),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=_plain(unet),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(vae: Path, text: Path, text_2: Path, tokenizer: Path, unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """SDXL's base, or SSD."""
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(text),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(text_2),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizer),
        unet=_plain(unet),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **NOISE),
        add_watermarker=False,
    )


def refiner(vae: Path, text_2: Path, tokenizer: Path, unet: UNet2DConditionModel) -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: the second encoder only, an aesthetic score, and no zeros in the place of an empty prompt."""
    return StableDiffusionXLImg2ImgPipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(text_2),
        tokenizer=None,
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizer),
        unet=_plain(unet),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **NOISE),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def sd3(
    vae: Path, text: Path, text_2: Path, tokenizer: Path, transformer: SD3Transformer2DModel
) -> StableDiffusion3Pipeline:
    """Without T5."""
    plain = SD3Transformer2DModel.from_config(transformer.config)
    plain.load_state_dict(transformer.state_dict())
    return StableDiffusion3Pipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=with_projection(CLIPTextModel.from_pretrained(text, dtype=torch.float32)),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(text_2),
        text_encoder_3=None,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizer),
        tokenizer_3=None,
        transformer=plain,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )


def _plain(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy without what training hangs into it."""
    plain: UNet2DConditionModel = UNet2DConditionModel.from_config(unet.config)
    plain.load_state_dict(unet.state_dict())
    return plain


def write(pipeline: DiffusionPipeline, tokenizer: Path, folder: Path) -> None:
    """Replaces `folder` by the checkpoint; a README.md that lies there stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    pipeline.to(dtype=torch.float16).save_pretrained(fresh, safe_serialization=True)
    _as_published(fresh / "scheduler" / "scheduler_config.json")
    for place in fresh.glob("tokenizer*"):
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(tokenizer / name, place / name)
    for config in fresh.glob("*/config.json"):  # where it was read from is nobody's business
        fields = json.loads(config.read_text())
        fields.pop("_name_or_path", None)
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    fresh.chmod(0o755)
    for file in fresh.rglob("*.safetensors"):
        file.chmod(0o644)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh / "README.md")
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _as_published(config: Path) -> None:
    fields = json.loads(config.read_text())
    if "beta_start" not in fields:  # a flow
        return
    fields |= FOREIGN
    if fields["_class_name"] == "PNDMScheduler":
        del fields["timestep_spacing"]
    config.write_text(json.dumps(fields, indent=2) + "\n")
