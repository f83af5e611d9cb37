"""The noise of one image: torch's CPU generator stream in numpy, so that a seed gives its picture of diffusers.

Draws are made in the order of the diffusers pipeline: start noise first, then the steps'. Beside the stream a seed has
one Brownian path, in numpy's Philox: diffusers seeds its own by chance, so there is none to agree with. Knows nothing
of samplers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BLOCK = 16  # torch turns uniforms into normals sixteen at a time
_FLOAT = np.float32
_BROWNIAN = 1  # which of a seed's Philox streams


class NoiseStream:
    """The stream of `torch.Generator().manual_seed(seed)` as `torch.randn` reads it; one image, one stream."""

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}; it must be 0..{2**32 - 1}")
        self._seed = seed
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

    def brownian(self, shape: tuple[int, ...]) -> "BrownianPath":
        """The path of this seed, however much was drawn before."""
        return BrownianPath(self._seed, shape)

    def _uniforms(self, count: int) -> npt.NDArray[np.float32]:
        """`count` values in [0, 1): one 32-bit draw each, of which the low 24 bits count."""
        draws = np.frombuffer(self._mersenne_twister.bytes(4 * count), dtype="<u4")
        return (draws & 0xFFFFFF).astype(_FLOAT) * _FLOAT(2**-24)


class BrownianPath:
    """One Brownian motion W(k) a seed, for 0 <= k <= 2^16: W(0) = 0, variance k.

    A dyadic tree: the value in the middle of an interval is the mean of its ends plus a normal value of its own, with
    the bridge's variance of a quarter of the interval. The normal values of a node come from Philox, keyed by the seed
    and counted by the node's number in the tree, so W(k) depends on seed and k alone: on no order of asking, no other
    levels, no other picture. Intervals shorter than k / 2^12 are straight lines: the levels of a run of 200 steps are
    40 times as far apart.
    """

    _TOP = 2.0**16  # far above the k of any trained checkpoint: SD 1.5 and SDXL end at 14.6
    _FINEST = 2.0**-12  # of an interval, relative to its upper end

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._seed, self._shape = seed, shape
        root = np.sqrt(_FLOAT(self._TOP)) * self._normal(0)
        self._way = [_Interval(1, 0.0, self._TOP, np.zeros(shape, _FLOAT), root)]  # from the root to the last asked

    def between(self, k: float, k_there: float) -> npt.NDArray[np.float32]:
        """The path's increment from k to k_there, divided by its standard deviation: standard normal values."""
        increment: npt.NDArray[np.float32] = (self._at(k_there) - self._at(k)) / _FLOAT(np.sqrt(abs(k_there - k)))
        return increment

    def _at(self, k: float) -> npt.NDArray[np.float32]:
        """W(k). The way down is kept, since levels are asked for one after the other."""
        if not 0 < k <= self._TOP:
            raise ValueError(f"k is {k}; it must be above 0 and at most {self._TOP:g}")
        while not self._way[-1].begin <= k <= self._way[-1].end:
            self._way.pop()
        while (last := self._way[-1]).end - last.begin > self._FINEST * last.end:
            self._way.append(self._half(last, k))
        share = _FLOAT((k - last.begin) / (last.end - last.begin))
        value: npt.NDArray[np.float32] = (1 - share) * last.at_begin + share * last.at_end
        return value

    def _half(self, whole: "_Interval", k: float) -> "_Interval":
        middle = (whole.begin + whole.end) / 2
        spread = _FLOAT(np.sqrt(whole.end - whole.begin) / 2)
        at_middle = (whole.at_begin + whole.at_end) / 2 + spread * self._normal(whole.node)
        if k <= middle:
            return _Interval(2 * whole.node, whole.begin, middle, whole.at_begin, at_middle)
        return _Interval(2 * whole.node + 1, middle, whole.end, at_middle, whole.at_end)

    def _normal(self, node: int) -> npt.NDArray[np.float32]:
        """The standard normal values of a node: 1 the whole interval, 2n and 2n + 1 its halves; 0 the path's end."""
        count = int(np.prod(self._shape))
        blocks = -(-count // _BLOCK)
        philox = np.random.Philox(key=[self._seed, _BROWNIAN], counter=[0, 0, node, 0])  # 2^128 values a node
        draws = philox.random_raw(blocks * _BLOCK // 2).astype("<u8").view("<u4")
        values: npt.NDArray[np.float32] = _box_muller((draws & 0xFFFFFF).astype(_FLOAT) * _FLOAT(2**-24))
        return values[:count].reshape(self._shape)


@dataclass(frozen=True, eq=False)
class _Interval:
    """A node of the tree: begin < end, and the path at both."""

    node: int
    begin: float
    end: float
    at_begin: npt.NDArray[np.float32]
    at_end: npt.NDArray[np.float32]


def _box_muller(uniforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In each block of sixteen the first eight give radii, the last eight angles; cosines come first, then sines."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(_FLOAT(-2) * np.log(_FLOAT(1) - blocks[:, 0]))
    angle = _FLOAT(2 * np.pi) * blocks[:, 1]
    normals: npt.NDArray[np.float32] = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return normals.reshape(-1)
