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
    """One Brownian motion W(k) a seed, for 0 < k <= 2^16: variance k.

    A dyadic tree: the value in the middle of an interval is the mean of its ends plus a normal value of its own, with
    the bridge's variance of a quarter of the interval. In an interval shorter than k / 2^7, which is less than what
    lies between two levels of 200 steps, a point is drawn from the bridge for itself. The normal values come from
    Philox, keyed by the seed and counted by the interval's number in the tree (and by the point), so W(k) depends on
    seed and k alone: on no order of asking, no other levels, no other picture.
    """

    _TOP = 2.0**16  # far above the k of any trained checkpoint: SD 1.5 and SDXL end at 14.6
    _FINEST = 2.0**-7  # of an interval, relative to its upper end

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._seed, self._shape = seed, shape
        end = np.sqrt(_FLOAT(self._TOP)) * self._normal(interval=0)
        self._way = [_Interval(1, 0.0, self._TOP, np.zeros(shape, _FLOAT), end)]  # from the root to the last asked
        self._last: dict[float, npt.NDArray[np.float32]] = {}  # W at the last two levels asked

    def between(self, k: float, k_there: float) -> npt.NDArray[np.float32]:
        """The path's increment from k to k_there, divided by its standard deviation: standard normal values."""
        increment: npt.NDArray[np.float32] = (self._at(k_there) - self._at(k)) / _FLOAT(np.sqrt(abs(k_there - k)))
        return increment

    def _at(self, k: float) -> npt.NDArray[np.float32]:
        """W(k). The way down is kept, since levels are asked for one after the other."""
        if k not in self._last:
            self._last = {**dict([*self._last.items()][-1:]), k: self._found(k)}
        return self._last[k]

    def _found(self, k: float) -> npt.NDArray[np.float32]:
        if not 0 < k <= self._TOP:
            raise ValueError(f"k is {k}; it must be above 0 and at most {self._TOP:g}")
        while not self._way[-1].begin <= k <= self._way[-1].end:
            self._way.pop()
        while (last := self._way[-1]).end - last.begin > self._FINEST * last.end:
            self._way.append(self._half(last, k))
        point = int(np.float32(k).view(np.uint32))  # float32: the last bits of a float64 differ from machine to machine
        return last.bridged(k, self._normal(last.number, point))

    def _half(self, whole: "_Interval", k: float) -> "_Interval":
        middle = (whole.begin + whole.end) / 2
        at_middle = whole.bridged(middle, self._normal(whole.number))
        if k <= middle:
            return _Interval(2 * whole.number, whole.begin, middle, whole.at_begin, at_middle)
        return _Interval(2 * whole.number + 1, middle, whole.end, at_middle, whole.at_end)

    def _normal(self, interval: int, point: int = 0) -> npt.NDArray[np.float32]:
        """The standard normal values of an interval's middle, or of another point in it. Interval 1 is the whole, 2n
        and 2n + 1 are the halves of n; 0 is the end of the path."""
        count = int(np.prod(self._shape))
        blocks = -(-count // _BLOCK)
        philox = np.random.Philox(key=[self._seed, _BROWNIAN], counter=[0, 0, interval, point])
        draws = philox.random_raw(blocks * _BLOCK // 2).astype("<u8").view("<u4")
        values: npt.NDArray[np.float32] = _box_muller((draws & 0xFFFFFF).astype(_FLOAT) * _FLOAT(2**-24))
        return values[:count].reshape(self._shape)


@dataclass(frozen=True, eq=False)
class _Interval:
    """An interval of the tree, and the path at both ends."""

    number: int
    begin: float
    end: float
    at_begin: npt.NDArray[np.float32]
    at_end: npt.NDArray[np.float32]

    def bridged(self, k: float, normal: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The path at k between the ends, given them and standard normal values."""
        share = (k - self.begin) / (self.end - self.begin)
        spread = np.sqrt((k - self.begin) * (self.end - k) / (self.end - self.begin))
        value: npt.NDArray[np.float32] = (
            _FLOAT(1 - share) * self.at_begin + _FLOAT(share) * self.at_end + _FLOAT(spread) * normal
        )
        return value


def _box_muller(uniforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In each block of sixteen the first eight give radii, the last eight angles; cosines come first, then sines."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(_FLOAT(-2) * np.log(_FLOAT(1) - blocks[:, 0]))
    angle = _FLOAT(2 * np.pi) * blocks[:, 1]
    normals: npt.NDArray[np.float32] = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return normals.reshape(-1)
