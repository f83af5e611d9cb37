"""From a picture to the map that a ControlNet was trained on. Knows no request and no network but those of a
deployment that make maps themselves.

What needs no weights is here, computed as lllyasviel's annotators and their package `controlnet_aux` compute it, but at
the picture's own size: XDoG for scribbles, the "standard" line art. Any other kind is an engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import cv2
import numpy as np

from server.adapters.control import Control, preprocessor, seen
from server.engines.port import Array, Spec

if TYPE_CHECKING:
    from server.families.base import Run

# Of a picture (height width 3, uint8, RGB) and its mask (height width, bool): height width 4, uint8, RGB of the map and
# 255; 0 where a pixel is masked
Preprocessor = Callable[[Array, Array], Array]

CANNY = 100, 200  # thresholds of the gradient, documented
SCRIBBLE_SIGMAS = 0.5, 5.0  # pixels, of the two blurs whose difference is a line
SCRIBBLE_LEAST = 32  # of 510: twice the difference
LINEART_SIGMA = 6.0  # pixels
LINEART_LEAST = 8  # of 255: what differs less from its surroundings is no line
LINEART_FAINT = 16.0  # of 255: lines fainter than these are not drawn as strong ones
LINEART_STRENGTH = 127.0  # of 255, that the median line gets


def canny(picture: Array, mask: Array) -> Array:
    """Edges in white."""
    return _white(cv2.Canny(np.ascontiguousarray(picture), *CANNY))


def scribble(picture: Array, mask: Array) -> Array:
    """What is darker than its surroundings as lines in white."""
    fine, coarse = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma) for sigma in SCRIBBLE_SIGMAS)
    light = (255 - (coarse - fine).min(axis=2)).clip(0, 255).astype(np.uint8)
    return _white(np.where(2 * (255 - light.astype(np.int32)) > SCRIBBLE_LEAST, 255, 0).astype(np.uint8))


def lineart(picture: Array, mask: Array) -> Array:
    """What is darker than its surroundings in white, fine lines fainter."""
    colours = picture.astype(np.float32)
    dark = (cv2.GaussianBlur(colours, (0, 0), LINEART_SIGMA) - colours).min(axis=2).clip(0, 255)
    lines = dark[dark > LINEART_LEAST]
    median = float(np.median(lines)) if len(lines) > 0 else 0.0
    return _white((dark / max(LINEART_FAINT, median) * LINEART_STRENGTH).clip(0, 255).astype(np.uint8))


def itself(picture: Array, mask: Array) -> Array:
    """The picture, which what is drawn adds detail to (tile) or departs from (ip2p)."""
    return seen(picture)


def inpaint(picture: Array, mask: Array) -> Array:
    """The picture without what is masked: diffusers' examples give -1 there."""
    known = ~mask
    return np.dstack((picture * known[..., None].astype(np.uint8), known.astype(np.uint8) * np.uint8(255)))


PREPROCESSORS: Mapping[str, Preprocessor] = {
    "canny": canny,
    "scribble": scribble,
    "lineart": lineart,
    "tile": itself,
    "inpaint": inpaint,
    "ip2p": itself,
}


def control_map(picture: Array, mask: Array, name: str) -> Array:
    """One of `PREPROCESSORS`; 1536x1024 takes up to half a second."""
    return PREPROCESSORS[name](picture, mask)


def mapper(control: Control) -> tuple[Spec, ...]:
    """The engine that a control's map needs, or none."""
    name = control.preprocessor
    return () if name == "" or name in PREPROCESSORS else (preprocessor(name),)


async def mapped(control: Control, run: Run) -> Array:
    """What guides: height width 4, uint8, as from a `Preprocessor`. Beside the event loop."""
    if control.preprocessor == "":
        return seen(control.picture)
    if control.preprocessor in PREPROCESSORS:
        return await asyncio.to_thread(control_map, control.picture, control.mask, control.preprocessor)
    made = await run(preprocessor(control.preprocessor), {"pixels": control.picture[None]})
    return seen(made["map"][0])


def _white(lines: Array) -> Array:
    """A grey map (height width, uint8) in three channels."""
    return seen(np.dstack((lines,) * 3))
