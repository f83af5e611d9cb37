"""How long executions of each network take, measured as they happen, by shape. Knows no network and no plan.

A shape is how many rows a call has and how many numbers a row's first input has: tokens of a text, latent pixels times
channels of a denoiser. What else a row carries follows from these.
"""

import math
from collections import OrderedDict
from typing import NamedTuple

NEW = 0.3  # weight of a new measurement: the slow first call of a shape has 3 % left after ten more
MOST_SHAPES = 64  # a network; all sizes of an engine at a few row counts. The one measured longest ago makes room


class Shape(NamedTuple):
    """Of one call."""

    rows: int
    row_size: int  # numbers in a row of the first input

    @property
    def work(self) -> int:
        """To which the time of a call is nearly proportional."""
        return self.rows * self.row_size


class Meter:
    """Decaying means of seconds a call."""

    def __init__(self) -> None:
        """Nothing has been measured."""
        self._means: dict[str, OrderedDict[Shape, float]] = {}

    def record(self, network: str, shape: Shape, seconds: float) -> None:
        """A call has taken so long."""
        means = self._means.setdefault(network, OrderedDict())
        mean = means.get(shape, seconds)
        means[shape] = mean + NEW * (seconds - mean)
        means.move_to_end(shape)
        if len(means) > MOST_SHAPES:
            means.popitem(last=False)

    def seconds(self, network: str, shape: Shape) -> float | None:
        """What a call is expected to take: of a shape not seen yet, in proportion to the nearest one seen.

        None where the network has not run.
        """
        means = self._means.get(network)
        if means is None:
            return None
        nearest = min(means, key=lambda seen: _distance(seen, shape))
        return means[nearest] * shape.work / nearest.work


def _distance(one: Shape, other: Shape) -> float:
    return abs(math.log(one.rows / other.rows)) + abs(math.log(one.row_size / other.row_size))
