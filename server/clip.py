"""What CLIP's vision tower is shown of a picture: in the safety stage, by IP-Adapters and of transfer images."""

import numpy as np
from PIL import Image

from server.engines.port import Array

# CLIPImageProcessor's: what its towers were trained on, of channels in 0..1
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalised(pixels: Array, side: int) -> Array:
    """As CLIPImageProcessor does: the shorter edge to `side` pixels, bicubic; the centre cut out; normalised.

    Height width 3, uint8 -> 3 side side, float32, about unit variance.
    """
    height, width, _ = pixels.shape
    shorter = min(height, width)
    small = Image.fromarray(pixels).resize(
        (side * width // shorter, side * height // shorter), Image.Resampling.BICUBIC
    )
    left, top = (small.width - side) // 2, (small.height - side) // 2
    centre = np.asarray(small.crop((left, top, left + side, top + side)), np.float32) / 255
    return np.ascontiguousarray(((centre - _MEAN) / _STD).transpose(2, 0, 1))
