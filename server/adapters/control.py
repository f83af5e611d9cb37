"""A ControlNet in a request: what guides it, how strongly and how long. Knows no family and no engine's name.

Source: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (2023), as diffusers has it.
"""

from dataclasses import dataclass

import numpy as np

from server.engines.port import Array, Port, Spec


@dataclass(frozen=True)
class NoControl:
    """Nothing guides the denoising besides the texts."""


@dataclass(frozen=True, eq=False)
class Control:
    """A picture that guides the denoising."""

    picture: Array  # height width 3, uint8, at the plan's size
    mask: Array  # height width, bool: what is painted where the request has a mask; nowhere without one
    preprocessor: str  # what makes the control map from the picture; empty: the picture is the map
    scale: float  # of the ControlNet's residuals
    early_stop: float  # share of the evaluations after which it stops; 1: it does not


def kept(evaluations: int, early_stop: float) -> int:
    """How many of a run's evaluations, the first ones, are guided: diffusers' `control_guidance_end`."""
    return sum((index + 1) / evaluations <= early_stop for index in range(evaluations))


def seen(pixels: Array) -> Array:
    """A map (height width 3, uint8) as the network takes it: with 255 behind the colours, every pixel is told."""
    return np.dstack((pixels, np.full(pixels.shape[:2], 255, np.uint8)))


def preprocessor(name: str) -> Spec:
    """The engine of a deployment that makes maps of a kind."""
    picture = ("rows", "picture_height", "picture_width", 3)
    return Spec(
        name=f"preprocessor_{name}",
        inputs=(Port("pixels", "uint8", picture),),  # RGB
        outputs=(Port("map", "uint8", picture),),
        max_rows=1,  # as an autoencoder's: one picture a request
    )
