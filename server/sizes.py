"""Which size of an engine a pair of sides is, or comes nearest to. Pure; knows sizes alone."""

import math
from collections.abc import Sequence

from server.families.base import Size


def wrong_size(size: Size, sizes: Sequence[Size], engine: str) -> str:
    """A sentence about a pair that is none of an engine's; empty for one that is."""
    if size in sizes:
        return ""
    nearest = f"; the nearest is {nearest_size(size, sizes)}, ListEngines has all" if min(size) > 0 else ""
    return f"{size} is not a size of {engine}{nearest}; allowed are {', '.join(map(str, sizes))}"


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one that needs the least stretching: the smallest sum of the sides' log ratios. Both sides above 0."""
    return min(sizes, key=lambda s: abs(math.log(s.width / size.width)) + abs(math.log(s.height / size.height)))
