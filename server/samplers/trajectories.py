"""The levels that the families of methods visit, each as its diffusers schedulers do. Knows no method.

The k-diffusion and DPM-Solver methods end exactly clean; their models are told the timestep of a level.
"""

import math
from collections.abc import Callable

import numpy as np

from server.levels import (
    CLEAN,
    LEADING,
    LINSPACE,
    Level,
    NoiseSchedule,
    Spacing,
    Times,
    karras_ks,
    ks_at,
    level_at,
    level_of_k,
    times_of,
    training_ks,
)
from server.samplers.base import Step, Trajectory, in_steps

Levels = tuple[Level, ...]
Via = Callable[[NoiseSchedule, Level, Level], Levels]  # (schedule, here, there) -> what a step evaluates between them


def training_levels(schedule: NoiseSchedule, steps: int) -> Levels:
    """DDPM's relatives: levels of whole training timesteps, "leading" by default. What is behind the last one differs
    from method to method and is not in it."""
    spacing = LEADING if schedule.spacing is None else schedule.spacing
    return tuple(level_at(schedule, int(time)) for time in spacing.times(schedule, steps))


def k_levels(schedule: NoiseSchedule, steps: int) -> Levels:
    """k-diffusion's methods: from k at T - 1 to clean, evenly in time, at fractions of timesteps."""
    times = _spacing(schedule).times(schedule, steps)
    return _levels(ks_at(schedule, times), times)


def k_karras_levels(schedule: NoiseSchedule, steps: int) -> Levels:
    """Karras's between the ends of `k_levels`."""
    ks = _karras_between_ends(schedule, steps)
    return _levels(ks, times_of(schedule, ks))


def k_karras_levels_told_whole(schedule: NoiseSchedule, steps: int) -> Levels:
    """The same; the model is told the nearest whole timestep."""
    ks = _karras_between_ends(schedule, steps)
    return _levels(ks, times_of(schedule, ks).round())


def lambda_levels(schedule: NoiseSchedule, steps: int) -> Levels:
    """The DPM-Solver papers' methods: whole timesteps that count the clean picture as the last of them."""
    return lambda_levels_spaced(_spacing(schedule), schedule, steps)


def lambda_levels_spaced(spacing: Spacing, schedule: NoiseSchedule, steps: int) -> Levels:
    """The same for a method that brings its own spacing."""
    times = spacing.times_before_clean(schedule, steps)
    return _levels(ks_at(schedule, times), times)


def lambda_karras_levels(schedule: NoiseSchedule, steps: int) -> Levels:
    """Karras's over the whole training range, whatever the spacing; the model is told the nearest whole timestep."""
    training = training_ks(schedule)
    ks = karras_ks(float(training[0]), float(training[-1]), steps)
    return _levels(ks, times_of(schedule, ks).round())


def k_trajectory(schedule: NoiseSchedule, levels: Levels, via: Via | None = None) -> Trajectory:
    """A linspace run starts at k_max * noise, which falls short of unit variance by alpha of the first level; a
    "leading" run starts at unit variance. Both are diffusers' `init_noise_sigma`. The last step goes to clean, where
    nothing is left to evaluate, and has no `via`."""
    steps = in_steps(levels)
    if via is not None:
        within = (Step(step.here, step.there, via(schedule, step.here, step.there)) for step in steps[:-1])
        steps = (*within, steps[-1])
    return Trajectory(steps, start_scale=1.0 if _spacing(schedule).unit_start else levels[0].sigma)


def lambda_trajectory(levels: Levels) -> Trajectory:
    """It starts at unit variance."""
    return Trajectory(in_steps(levels), start_scale=1.0)


def halfway(schedule: NoiseSchedule, here: Level, there: Level) -> Level:
    """Between two levels, halfway in log k."""
    k = math.sqrt(here.k * there.k)
    return level_of_k(k, float(times_of(schedule, np.array([k]))[0]))


def _spacing(schedule: NoiseSchedule) -> Spacing:
    return LINSPACE if schedule.spacing is None else schedule.spacing


def _karras_between_ends(schedule: NoiseSchedule, steps: int) -> Times:
    ks = ks_at(schedule, _spacing(schedule).times(schedule, steps))
    return karras_ks(float(ks[-1]), float(ks[0]), steps)


def _levels(ks: Times, times: Times) -> Levels:
    return (*(level_of_k(float(k), float(time)) for k, time in zip(ks, times, strict=True)), CLEAN)
