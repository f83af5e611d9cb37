"""DPM-Solver++(2M): Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++" (2022), algorithm 2."""

import math
from collections.abc import Sequence

import numpy as np

from server.levels import Array, Level, NoiseSchedule, karras_ks, level_of_k, times_of, training_ks
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, Trajectory, in_steps, move, once_each_level


def _karras_trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """Karras's levels over the whole training range, then clean. The model is told the nearest whole timestep."""
    training = training_ks(schedule)
    ks = karras_ks(float(training[0]), float(training[-1]), steps)
    times = np.round(times_of(schedule, ks))
    levels = [level_of_k(float(k), float(t)) for k, t in zip(ks, times, strict=True)]
    return Trajectory(in_steps((*levels, level_of_k(0.0, time=0.0))), start_scale=1.0)


def dpm_solver_pp_2m(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """D extrapolates the clean image from the last two to the middle of the step in lambda = log(alpha / sigma). First
    order where there is no earlier image, and into sigma = 0, where lambda is infinite."""
    before: tuple[Level, Array] | None = None
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        D = estimate.clean
        if before is not None and there.sigma > 0:
            r = (_lambda(here) - _lambda(before[0])) / (_lambda(there) - _lambda(here))
            D = estimate.clean + (estimate.clean - before[1]) / (2 * r)
        x = move(estimate.x, D, here, there)
        before = here, estimate.clean
    return x


def _lambda(level: Level) -> float:
    return math.log(level.alpha / level.sigma)


DPM_PLUS_PLUS_2M_KARRAS = Sampler(
    name="DPM_PLUS_PLUS_2M_KARRAS",
    paper="Lu et al. 2022, arXiv 2211.01095, algorithm 2; levels of Karras et al. 2022, equation 5",
    order=2,
    max_steps=200,
    trajectory=_karras_trajectory,
    evaluations=once_each_level,
    run=dpm_solver_pp_2m,
)
