"""The noise of one image: torch's CPU generator stream in numpy, so that a seed gives its picture of diffusers.

Draws are made in the order of the diffusers pipeline: start noise first, then the steps'. Knows nothing of samplers.
"""

import numpy as np
import numpy.typing as npt

_BLOCK = 16  # torch turns uniforms into normals sixteen at a time
_FLOAT = np.float32


class NoiseStream:
    """The stream of `torch.Generator().manual_seed(seed)` as `torch.randn` reads it; one image, one stream."""

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}; it must be 0..{2**32 - 1}")
        self._mersenne_twister = np.random.RandomState(seed)  # MT19937 by init_genrand, as torch's

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The next standard normal values, within 1e-6 of `torch.randn(shape, generator=...)`."""
        count = int(np.prod(shape))
        if count < _BLOCK:
            raise ValueError(
                f"{count} values were asked for; torch draws fewer than {_BLOCK} another way, not built here"
            )
        uniforms = self._uniforms(count)
        values = np.empty(count, _FLOAT)
        whole = count - count % _BLOCK
        values[:whole] = _box_muller(uniforms[:whole])
        if whole < count:  # torch draws the last sixteen anew and lets them overlap
            values[-_BLOCK:] = _box_muller(self._uniforms(_BLOCK))
        return values.reshape(shape)

    def _uniforms(self, count: int) -> npt.NDArray[np.float32]:
        """`count` values in [0, 1): one 32-bit draw each, of which the low 24 bits count."""
        draws = np.frombuffer(self._mersenne_twister.bytes(4 * count), dtype="<u4")
        return (draws & 0xFFFFFF).astype(_FLOAT) * _FLOAT(2**-24)


def _box_muller(uniforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In each block of sixteen the first eight give radii, the last eight angles; cosines come first, then sines."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(_FLOAT(-2) * np.log(_FLOAT(1) - blocks[:, 0]))
    angle = _FLOAT(2 * np.pi) * blocks[:, 1]
    normals: npt.NDArray[np.float32] = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return normals.reshape(-1)
