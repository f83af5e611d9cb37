"""Pixel work before and after the engines: what the model is shown of a given picture, and how what it painted is put
back. Plain numpy and Pillow; knows nothing of requests, files, latents' values or networks.

Resizing, masks and crops follow diffusers' `VaeImageProcessor` (LANCZOS, binarised at 0.5, `get_crop_region`). The
fill of unknown areas is the pull-push of Gortler et al. 1996, "The Lumigraph", section 3.4.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFilter

from server.engines.port import Array

_LANCZOS = PillowImage.Resampling.LANCZOS
_BILINEAR = PillowImage.Resampling.BILINEAR
_LOBES = 3  # pixels to each side that LANCZOS makes one of
_PAINT = 128  # of 255: from here on a mask says "paint", diffusers' 0.5
_KNOWN = [255] * _PAINT + [0] * (256 - _PAINT)  # opacity by a mask's value
_GRAIN = 8.0  # of 255, standard deviation: a smooth fill alone tells a model that the place is to stay smooth
_RING = 1  # pixels around a mask whose error is taken off beside it: wider ones know less of the very edge
_MAX_ERROR = 24.0  # of 255: an autoencoder's error is smaller; what differs by more shows something else


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


def painted_at(mask: Array, size: tuple[int, int]) -> Array:
    """Where `mask` (height width, uint8, white = paint) of any size paints at `size`, width and height: height width,
    bool. Raises `NothingToPaint`."""
    painted = _resized(mask, size) >= _PAINT
    if not painted.any():
        raise NothingToPaint("the mask is black everywhere at the requested size; paint white what is to be filled")
    return painted


def whole(size: tuple[int, int]) -> Box:
    """All of a canvas."""
    return Box(0, 0, *size)


def inpainting(image: Array, mask: Array, size: tuple[int, int], box: Box) -> Inpainting:
    """`image` (height width 3, uint8) and `mask` (height width, uint8, white = paint), each of any size; `size` is
    width, height. The model sees what lies in the box of the canvas, enlarged to `size`.

    Raises `NothingToPaint`.
    """
    canvas, canvas_mask = _resized(image, size), painted_at(mask, size)
    if box == whole(size):
        return Inpainting(canvas, canvas_mask, canvas, canvas_mask, box)
    seen_mask = _resized(mask, size, _scaled(box, size, mask)) >= _PAINT
    return Inpainting(_resized(image, size, _scaled(box, size, image)), seen_mask, canvas, canvas_mask, box)


def framed(image: Array, size: tuple[int, int], box: Box) -> Array:
    """What of a picture (height width 3, uint8, any size) lies in a box of a canvas of `size` (width, height), enlarged
    to that size."""
    return _resized(image, size, _scaled(box, size, image))


def paste(painted: Array, inpainting: Inpainting) -> Array:
    """The canvas with what the model painted (height width 3, uint8, at the plan's size) where the mask says so, and
    nowhere else.

    The autoencoder gives back even what was not painted in slightly other colours, which would show as a seam. Its
    error next to the mask is known; it is continued into the mask and taken off.
    """
    left, top, right, bottom = inpainting.box
    result = inpainting.canvas.copy()
    around, inside = result[top:bottom, left:right], inpainting.canvas_mask[top:bottom, left:right]
    placed = _resized(painted, (right - left, bottom - top)).astype(np.float32)
    error = placed - around
    trusted = _grown(inside, _RING) & ~inside & (np.abs(error).max(axis=2) < _MAX_ERROR)
    corrected = placed - _pulled_and_pushed(error, trusted[..., None].astype(np.float32))
    around[inside] = corrected[inside].round().clip(0, 255).astype(np.uint8)
    return result


def latent_mask(mask: Array, pixels_per_latent: int) -> Array:
    """1 h w, float32, 1 = paint, of `mask` (height width, bool): each latent takes its first pixel, as torch's nearest
    `interpolate` does. A mask so thin that no latent takes part marks those that it touches instead."""
    nearest = mask[::pixels_per_latent, ::pixels_per_latent]
    if not nearest.any():
        height, width = nearest.shape
        nearest = mask.reshape(height, pixels_per_latent, width, pixels_per_latent).any(axis=(1, 3))
    return nearest[None].astype(np.float32)


def crop_box(mask: Array, padding: int) -> Box:
    """The surroundings of a mask (height width, bool, painted somewhere) in the shape of the whole, inside of it."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    if (right - left) * height > (bottom - top) * width:
        top, bottom = _lengthened(top, bottom, int((right - left) * height / width), height)
    else:
        left, right = _lengthened(left, right, int((bottom - top) * width / height), width)
    return Box(left, top, right, bottom)


def _lengthened(begin: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """A span of at least `length` around begin..end, moved and cut so that it lies in 0..limit."""
    growth = max(length - (end - begin), 0)
    begin -= growth // 2
    begin = max(min(begin, limit - length), 0)
    return begin, min(max(begin + length, end), limit)


def continued(image: Array, mask: Array, size: tuple[int, int]) -> Array:
    """`image` (height width 3, uint8) at `size`, where `mask` (height width, uint8) is white made of the rest. Each of
    any size; `size` is width, height. Raises `NothingToPaint`."""
    unknown = painted_at(mask, size)
    return filled(_resized_known(image, mask, unknown), unknown)


def filled(pixels: Array, unknown: Array) -> Array:
    """`pixels` (height width 3, uint8) with the unknown ones (height width, bool) made of the known: close to these
    their own colours, the farther away the smoother, and some grain. What is known stays as it is."""
    known = ~unknown[..., None]
    smooth = _pulled_and_pushed(pixels.astype(np.float32), known.astype(np.float32))
    grain = np.random.RandomState(0).normal(0, _GRAIN, pixels.shape)  # one for all: a picture is its seed's alone
    return np.where(known, pixels, (smooth + grain).round().clip(0, 255).astype(np.uint8))


def _pulled_and_pushed(values: Array, weights: Array) -> Array:
    """`values` (h w c, float32) where their weights (h w 1, float32, 0..1) are 1, else those around: means over ever
    larger squares until each has some, laid over each other smoothly. Zero where no weight is above 0 at all."""
    height, width, _ = values.shape
    if weights.min() >= 1:
        return values
    if height == width == 1:
        return values * (weights > 0)
    even = ((0, height % 2), (0, width % 2), (0, 0))
    shares = _fours(np.pad(weights, even))
    means = _fours(np.pad(values * weights, even)) / np.maximum(shares, np.float32(1e-6))
    coarse = _pulled_and_pushed(means, np.minimum(shares, np.float32(1)))
    doubled = 2 * coarse.shape[1], 2 * coarse.shape[0]
    finer = [
        np.asarray(PillowImage.fromarray(np.ascontiguousarray(plane)).resize(doubled, _BILINEAR))
        for plane in np.moveaxis(coarse, 2, 0)
    ]
    around = np.stack(finer, axis=2)[:height, :width]
    filled: Array = weights * values + (1 - weights) * around
    return filled


def _fours(values: Array) -> Array:
    """Sums over squares of 2x2 (h w c, float32, even sides)."""
    summed: Array = values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]
    return summed


def _grown(mask: Array, pixels: int) -> Array:
    """A mask (height width, bool) and what lies within so many pixels of it."""
    blurred = PillowImage.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(pixels))
    return np.asarray(blurred) > 0


def _scaled(box: Box, size: tuple[int, int], image: Array) -> tuple[float, float, float, float]:
    """A box of a picture of `size`, in pixels of the image."""
    across, down = image.shape[1] / size[0], image.shape[0] / size[1]
    return box.left * across, box.top * down, box.right * across, box.bottom * down


def _resized_known(image: Array, mask: Array, unknown: Array) -> Array:
    """`image` (height width 3, uint8) at the size of `unknown` (height width, bool). What is unknown lends nothing of
    its colour to what is beside it, or an edge would be seen: there Pillow weighs colours by opacity, and without
    LANCZOS's lobes."""
    size = unknown.shape[1], unknown.shape[0]
    pixels = PillowImage.fromarray(image)
    plain = np.asarray(pixels.resize(size, _LANCZOS))
    pixels.putalpha(PillowImage.fromarray(mask).resize(pixels.size, _LANCZOS).point(_KNOWN))
    beside = np.asarray(pixels.resize(size, _BILINEAR).convert("RGB"))
    return np.where(_grown(unknown, _LOBES)[..., None], beside, plain)


def _resized(pixels: Array, size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Array:
    """height width [3], uint8; of the box alone where there is one."""
    return np.asarray(PillowImage.fromarray(pixels).resize(size, _LANCZOS, box))
