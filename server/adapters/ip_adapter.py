"""An IP-Adapter in a request: a picture as a prompt. Knows no family and no engine's name.

Source: Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models" (2023), as
diffusers has it; which blocks carry style and which composition: Wang et al., "InstantStyle" (2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from server.engines.port import Array

Method = Literal["full", "style", "composition"]
# What a method drives, by the beginnings of the names of a UNet's attentions.
Reach = Mapping[Method, tuple[str, ...]]


@dataclass(frozen=True)
class NoImagePrompt:
    """Texts alone say what the picture shows."""


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A picture that says what to draw."""

    pixel_values: Array  # 3 side side, float32, as CLIP was trained: its mean and deviation taken out
    mask: Array  # height width in latent pixels, float32: 1 where it applies
    method: Method
    scale: float
    projection: Literal["linear", "plus"]  # how the adapter turns the picture's embedding into tokens


def scales(prompt: ImagePrompt, attentions: Sequence[str], reach: Reach) -> Array:
    """Of each attention, in their order: attentions, float32."""
    driven = reach[prompt.method]
    return np.array([prompt.scale if name.startswith(driven) else 0.0 for name in attentions], np.float32)


def latent_mask(mask: Array, pixels_per_latent: int) -> Array:
    """Where an adapter applies (height width, bool, at the plan's size), as the share of each latent pixel's area:
    height width in latent pixels, float32, 0..1."""
    height, width = mask.shape
    cells = mask.reshape(height // pixels_per_latent, pixels_per_latent, width // pixels_per_latent, pixels_per_latent)
    share: Array = cells.mean(axis=(1, 3), dtype=np.float32)
    return share
