"""Pictures to be judged: by a running service, or straight from a checkpoint through diffusers."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.models.attention_processor import Attention
from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from demo.training.attention import NoAttention


class Artist(Protocol):
    """Whoever draws."""

    def draw(self, prompt: str, seed: int, width: int, height: int, steps: int, guidance: float) -> Image.Image:
        """One picture."""
        ...


@dataclass(frozen=True)
class Service:
    """One engine of a running service. UNets get DPM-Solver++ 2M on Karras levels, SD3 has no choice."""

    client: Client
    engine: str
    high_noise_frac: float | None = None  # None: the service's own

    def draw(self, prompt: str, seed: int, width: int, height: int, steps: int, guidance: float) -> Image.Image:
        """See `Artist`."""
        request = pb.GenerateRequest(
            engine=self.engine, prompt=prompt, seed=seed, width=width, height=height, steps=steps, cfg_scale=guidance,
            image_encoding=pb.IMAGE_ENCODING_PNG, high_noise_frac=self.high_noise_frac,
        )  # fmt: skip
        if self.engine != "sd3":
            request.sampler = pb.SAMPLER_DPM_PLUS_PLUS_2M_KARRAS
        return Image.open(io.BytesIO(self.client.generate(request).images[0].data)).convert("RGB")


class Diffusers:
    """SD 1.5's checkpoint with the same sampler."""

    def __init__(self, checkpoint: Path) -> None:
        """Attention whose output weights are all zero is left out: the same picture in less than half the time."""
        pipeline: Any = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        for module in pipeline.unet.modules():
            if isinstance(module, Attention) and not module.to_out[0].weight.any() and not module.to_out[0].bias.any():
                module.set_processor(NoAttention())
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline

    def draw(self, prompt: str, seed: int, width: int, height: int, steps: int, guidance: float) -> Image.Image:
        """See `Artist`."""
        picture: Image.Image = self._pipeline(
            prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        return picture
