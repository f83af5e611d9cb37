"""What numbers a request may have, each by itself. Pure; knows fields by name and no message."""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_IMAGES = 16
MAX_TRANSFERRED = 4  # pictures of one subject
SEEDS = 2**32  # how many there are, from 0


@dataclass(frozen=True)
class Within:
    """Both bounds are allowed."""

    least: float
    most: float

    def __call__(self, value: float) -> str:
        """What is wrong with a number; empty: nothing. NaN lies in no bounds."""
        inside = self.least <= value <= self.most
        return "" if inside else f"{_shown(value)} is not in {self.least:.15g}..{self.most:.15g}"


@dataclass(frozen=True)
class Above:
    """The upper bound is allowed, the lower is not."""

    bottom: float
    most: float

    def __call__(self, value: float) -> str:
        """Likewise."""
        inside = self.bottom < value <= self.most
        return "" if inside else f"{_shown(value)} is not above {self.bottom:g} and at most {self.most:g}"


@dataclass(frozen=True)
class AtLeast:
    """The bound is allowed, and whatever is larger: for whole numbers, a float may be infinite."""

    least: float

    def __call__(self, value: float) -> str:
        """Likewise."""
        return "" if value >= self.least else f"{_shown(value)} is not at least {self.least:g}"


Bounds = Within | Above | AtLeast


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.15g}"


CONTROL_SCALE = Within(0, 100)  # a map that says all has 1; so much more overflows in the end
check_seed = Within(0, SEEDS - 1)
NUMBERS: Mapping[str, Bounds] = {  # the same on every engine and with every sampler
    "cfg_scale": Above(0, 50),
    "num_images": Within(1, MAX_IMAGES),
    "strength": Above(0, 1),
    "inpaint_full_res_padding": AtLeast(0),
    "high_noise_frac": Within(0, 1),
    "controlnet_conditioning_scale": CONTROL_SCALE,
    "controlnet_early_stop": Within(0, 1),
    "ip_adapter_scale": Within(0, 1),
    "seed": check_seed,
}
