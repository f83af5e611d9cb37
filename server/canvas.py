"""Pixel work before and after the engines: what the model is shown of a given picture, and how what it painted is put
back. Plain numpy and Pillow; knows nothing of requests, files, latents' values or networks.

Resizing and masks follow diffusers' `VaeImageProcessor` (LANCZOS, masks binarised at 0.5, `get_crop_region`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage

from server.engines.port import Array

_LANCZOS = PillowImage.Resampling.LANCZOS
_PAINT = 128  # of 255: from here on a mask says "paint", diffusers' 0.5


class Box(NamedTuple):
    """Pixels; right and bottom are the first outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class FromNoise:
    """Nothing was given to begin with."""


@dataclass(frozen=True, eq=False)
class FromPicture:
    """Image to image."""

    pixels: Array  # height width 3, uint8, at the plan's size


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What the model sees, and the whole picture that it belongs to. Without a crop they are the same."""

    pixels: Array  # height width 3, uint8, at the plan's size
    mask: Array  # height width, bool: paint here
    canvas: Array  # height width 3, uint8, at the plan's size
    canvas_mask: Array  # height width, bool: only this may change
    box: Box  # where `pixels` lies in `canvas`


class NothingToPaint(ValueError):
    """The mask leaves nothing to paint; the text is a sentence for the caller."""


def from_picture(image: Array, size: tuple[int, int]) -> FromPicture:
    """`image` (height width 3, uint8) of any size; `size` is width, height."""
    return FromPicture(_resized(image, size))


def inpainting(
    image: Array, mask: Array, size: tuple[int, int], *, outpainting: bool, padding: int | None
) -> Inpainting:
    """`image` (height width 3, uint8) and `mask` (height width, uint8, white = paint), each of any size; `size` is
    width, height. With a padding (pixels of `size`) the model sees the mask's surroundings alone, enlarged.

    Raises `NothingToPaint`.
    """
    canvas_mask = _resized(mask, size) >= _PAINT
    if not canvas_mask.any():
        raise NothingToPaint("the mask is black everywhere at the requested size; paint the area to fill white")
    canvas = _resized(image, size)
    box = Box(0, 0, *size) if padding is None else crop_box(canvas_mask, size, padding)
    return Inpainting(canvas, canvas_mask, canvas, canvas_mask, box)


def paste(painted: Array, inpainting: Inpainting) -> Array:
    """The canvas with what the model painted (height width 3, uint8, at the plan's size) where the mask says so, and
    nowhere else."""
    left, top, right, bottom = inpainting.box
    result = inpainting.canvas.copy()
    inside = inpainting.canvas_mask[top:bottom, left:right]
    result[top:bottom, left:right][inside] = _resized(painted, (right - left, bottom - top))[inside]
    return result


def latent_mask(mask: Array, pixels_per_latent: int) -> Array:
    """1 h w, float32, 1 = paint, of `mask` (height width, bool): each latent takes its first pixel, as torch's nearest
    `interpolate` does. A mask so thin that no latent takes part marks those that it touches instead."""
    nearest = mask[::pixels_per_latent, ::pixels_per_latent]
    if not nearest.any():
        height, width = nearest.shape
        nearest = mask.reshape(height, pixels_per_latent, width, pixels_per_latent).any(axis=(1, 3))
    return nearest[None].astype(np.float32)


def crop_box(mask: Array, size: tuple[int, int], padding: int) -> Box:
    """The surroundings of a mask (height width, bool, painted somewhere) in the shape of `size`, inside the picture."""
    raise NotImplementedError


def _resized(pixels: Array, size: tuple[int, int]) -> Array:
    """height width [3], uint8."""
    return np.asarray(PillowImage.fromarray(pixels).resize(size, _LANCZOS))
