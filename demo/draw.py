"""Draws with a checkpoint through diffusers, the way all of them are judged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import Attention
from PIL import Image

from demo.training.attention import NoAttention


@dataclass(frozen=True)
class Artist:
    """A checkpoint, and maybe the refiner that ends what it begins."""

    pipeline: Any
    refiner: Any | None

    def draw(self, prompt: str, seed: int, width: int, height: int, steps: int, guidance: float) -> Image.Image:
        """One picture. With a refiner, it takes the last fifth."""
        dice = torch.Generator().manual_seed(seed)
        told: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": dice}
        size = {"width": width, "height": height}
        if self.refiner is None:
            picture: Image.Image = self.pipeline(prompt, **told, **size).images[0]
            return picture
        latents = self.pipeline(prompt, **told, **size, denoising_end=0.8, output_type="latent").images
        picture = self.refiner(prompt, image=latents, denoising_start=0.8, **told).images[0]
        return picture


def load(checkpoint: Path, refiner: Path | None = None) -> Artist:
    """In float32, with DPM-Solver++ 2M on Karras levels; a flow keeps its own scheduler."""
    return Artist(_load(checkpoint), None if refiner is None else _load(refiner))


def _load(checkpoint: Path) -> Any:
    """Attention whose output weights are all zero is left out: the same picture in less than half the time."""
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    for module in denoiser.modules():
        if isinstance(module, Attention) and not module.to_out[0].weight.any() and not module.to_out[0].bias.any():
            module.set_processor(NoAttention())
    if not isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
