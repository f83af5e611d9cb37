"""What CLIP's vision tower is shown of a picture: in the safety stage, by IP-Adapters and of transfer images."""

import numpy as np
from PIL import Image

from server.engines.port import Array

# CLIPImageProcessor's: what its towers were trained on, of channels in 0..1
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_LONGEST = 4  # sides that are resized at most; Pillow rounds otherwise when it is given less than a picture


def normalised(pixels: Array, side: int) -> Array:
    """As CLIPImageProcessor does: the shorter edge to `side` pixels, bicubic; the centre cut out; normalised.

    Of a very thin picture only the middle is resized: all of 16384x1 would take 3 GB.

    Height width 3, uint8 -> 3 side side, float32, about unit variance.
    """
    height, width, _ = pixels.shape
    shorter = min(height, width)
    whole = side * width // shorter, side * height // shorter
    size = min(whole[0], _LONGEST * side), min(whole[1], _LONGEST * side)
    left, top = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    across, down = width / whole[0], height / whole[1]
    middle = left * across, top * down, (left + size[0]) * across, (top + size[1]) * down
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, middle)
    left, top = (whole[0] - side) // 2 - left, (whole[1] - side) // 2 - top
    centre = np.asarray(small.crop((left, top, left + side, top + side)), np.float32) / 255
    return np.ascontiguousarray(((centre - _MEAN) / _STD).transpose(2, 0, 1))
