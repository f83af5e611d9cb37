"""What a sampler is: a generator that yields (x, level), "what is behind x here?", and is sent an `Estimate`.

A sampler goes on from the estimate's x, not from the x it yielded: inpainting blends the known area in before an
evaluation. At this boundary x is always alpha * clean + sigma * noise, as the model takes it, whatever form the paper
uses. No engines, no I/O, no async; guidance and the kind of prediction are the driver's.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from server.levels import Array, CleanFrom, Level
from server.noise import NoiseStream


@dataclass(frozen=True, eq=False)
class Estimate:
    """The driver's answer. Every array is c h w, float32: one image, no batch axis."""

    x: Array  # as the driver used it
    clean: Array  # the clean image behind it
    raw: Array  # the guided output of the model
    clean_from: CleanFrom  # how that is read: for methods that combine raw outputs


Query = tuple[Array, Level]  # x: c h w, float32, about unit variance
Sampling = Generator[Query, Estimate, Array]  # returns the final latents: c h w, float32


@dataclass(frozen=True)
class Step:
    """From one level to the next, noisier to cleaner."""

    here: Level  # its first evaluation
    there: Level  # where it leaves x
    via: tuple[Level, ...] = ()  # its further evaluations, in order


@dataclass(frozen=True)
class Trajectory:
    """The steps of a run, noisiest first; each begins where the one before ends.

    A run that starts in the middle (image to image) or stops there (a refiner takes over) walks a slice of them, and
    is a run of its own: it knows nothing of the steps before.
    """

    steps: tuple[Step, ...]
    start_scale: float  # a run from pure noise starts at start_scale * noise, noise of unit variance


@dataclass(frozen=True)
class Sampler:
    """One entry of the registry."""

    name: str  # as in a request
    paper: str
    order: int  # the error falls as steps^-order: that of the picture; of the pictures' statistics where noise is drawn
    max_steps: int
    trajectory: Callable[[Any, int], Trajectory]  # of a full run of that many steps; the schedule is its family's kind
    evaluations: Callable[[Sequence[Step]], int]  # of a run of those steps: cost and progress count these
    run: Callable[[Array, Sequence[Step], NoiseStream], Sampling]


def once_each_level(steps: Sequence[Step]) -> int:
    """`evaluations` of a method that asks the model what its steps name and no more."""
    return sum(1 + len(step.via) for step in steps)


def in_steps(levels: Iterable[Level]) -> tuple[Step, ...]:
    """The steps between levels, of a method that asks once a step."""
    return tuple(Step(here, there) for here, there in pairwise(levels))


def lam(level: Level) -> float:
    """lambda = log(alpha / sigma), half the log signal-to-noise ratio: the time of the DPM-Solver papers."""
    return math.log(level.alpha / level.sigma)


def move(x: Array, clean: Array, here: Level, there: Level) -> Array:
    """x at another level with the same clean image and the same noise behind it: the exact solution while `clean` does
    not change (DDIM equation 12 without noise; DPM-Solver++ equation 9 at first order; Euler in k-diffusion's form)."""
    ratio = there.sigma / here.sigma
    return ratio * x + (there.alpha - here.alpha * ratio) * clean


def slope(estimate: Estimate, level: Level) -> Array:
    """dx/dk in k-diffusion's form, of the probability flow (EDM, equations 1 and 3): the noise behind x."""
    d: Array = (estimate.x / level.alpha - estimate.clean) / level.k
    return d


def along(x: Array, d: Array, here: Level, there: Level) -> Array:
    """x at another level with a constant slope d between them: a straight line in k-diffusion's form."""
    moved: Array = there.alpha * (x / here.alpha + (there.k - here.k) * d)
    return moved


def below(here: Level, there: Level) -> tuple[Level, float]:
    """Where an ancestral step goes before its fresh noise, and the standard deviation of that noise, such that both
    give x at `there`: k_down^2 + k_up^2 = k'^2 with k_down = k'^2 / k (k-diffusion's `get_ancestral_step`, eta = 1;
    DDPM's posterior variance, Ho et al. 2020, and that of the reverse SDE while `clean` does not change)."""
    k_down = there.k**2 / here.k
    k_up = math.sqrt(max(there.k**2 - k_down**2, 0.0))
    return Level(alpha=there.alpha, sigma=there.alpha * k_down, time=there.time), there.alpha * k_up
