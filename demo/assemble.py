"""Puts the trained parts together: a diffusers folder of half-precision weights for StableDiffusionPipeline."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


def scheduler() -> PNDMScheduler:
    """SD 1.5's own scheduler, for a model that predicts v."""
    pndm = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    # not PNDM's own, but in SD 1.5's file too: other schedulers made from this configuration read it
    pndm.register_to_config(clip_sample=False)
    return pndm


def pipeline(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The whole pipeline, without safety checker and feature extractor."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write(
    vae_folder: Path, text_folder: Path, tokenizer_folder: Path, unet: UNet2DConditionModel, folder: Path
) -> None:
    """Replaces `folder` by the checkpoint; a README.md that lies there stays. The given unet is left as it is."""
    plain = UNet2DConditionModel.from_config(unet.config)
    plain.load_state_dict(unet.state_dict())
    whole = pipeline(
        AutoencoderKL.from_pretrained(vae_folder),
        CLIPTextModel.from_pretrained(text_folder),
        CLIPTokenizer.from_pretrained(tokenizer_folder),
        plain,
    ).to(dtype=torch.float16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    whole.save_pretrained(fresh, safe_serialization=True)
    _as_sd15_has_it(fresh / "scheduler" / "scheduler_config.json")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer_folder / name, fresh / "tokenizer" / name)
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


def _as_sd15_has_it(config: Path) -> None:
    """SD 1.5's own config names no timestep spacing, so that every scheduler takes its own, and tells DDIM not to clip;
    diffusers writes what PNDM knows of."""
    fields = {**json.loads(config.read_text()), "clip_sample": False}
    del fields["timestep_spacing"]
    config.write_text(json.dumps(fields, indent=2) + "\n")
