"""What numbers a request may have, each by itself. Pure; knows fields by name and no message."""

from collections.abc import Callable, Mapping

MAX_IMAGES = 16
SEEDS = 2**32  # how many there are, from 0

Check = Callable[[float], str]  # what is wrong with a number; empty: nothing. NaN lies in no bounds


def within(least: float, most: float) -> Check:
    """Both bounds are allowed."""
    return lambda value: "" if least <= value <= most else f"{_shown(value)} is not in {least:.15g}..{most:.15g}"


def above(bottom: float, most: float) -> Check:
    """The upper bound is allowed, the lower is not."""
    return lambda value: (
        "" if bottom < value <= most else f"{_shown(value)} is not above {bottom:g} and at most {most:g}"
    )


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.15g}"


check_seed = within(0, SEEDS - 1)
NUMBERS: Mapping[str, Check] = {  # the same on every engine and with every sampler
    "cfg_scale": above(0, 50),
    "num_images": within(1, MAX_IMAGES),
    "strength": above(0, 1),
    "inpaint_full_res_padding": within(0, 2**31 - 1),
    "high_noise_frac": within(0, 1),
    "seed": check_seed,
}
