"""A ControlNet in a request: what guides it, how strongly and how long. Knows no family and no engine's name.

Source: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (2023), as diffusers has it.
"""

from dataclasses import dataclass

from server.levels import Array


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
