"""An IP-Adapter in a request: a picture as a prompt. Knows no family and no engine's name.

Source: Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models" (2023), as
diffusers has it; which blocks carry style and which composition: Wang et al., "InstantStyle" (2024).
"""

from dataclasses import dataclass
from typing import Literal

from server.levels import Array


@dataclass(frozen=True)
class NoImagePrompt:
    """Texts alone say what the picture shows."""


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A picture that says what to draw."""

    pixel_values: Array  # 3 side side, float32, as CLIP was trained: its mean and deviation taken out
    mask: Array  # height width in latent pixels, float32: 1 where it applies
    method: Literal["full", "style", "composition"]
    scale: float
    projection: Literal["linear", "plus"]  # how the adapter turns the picture's embedding into tokens
