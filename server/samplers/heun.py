"""HEUN and K_HEUN: Karras, Aittala, Aila, Laine 2022 ("EDM"), algorithm 1 without churn, on evenly spaced levels and on
EDM's own."""

from collections.abc import Sequence
from dataclasses import replace

from server.levels import Array, Level, NoiseSchedule
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, along, move, once_each_level, slope
from server.samplers.trajectories import Levels, k_karras_levels, k_levels, k_trajectory


def heun(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """The slope of a step is the mean of those at its ends. The step into clean is Euler's."""
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        d = slope(estimate, here)
        for end in step.via:
            d = (d + slope((yield move(estimate.x, estimate.clean, here, end), end), end)) / 2
        x = along(estimate.x, d, here, there)
    return x


def at_the_end(schedule: NoiseSchedule, here: Level, there: Level) -> Levels:
    """The second evaluation is where the step ends."""
    return (there,)


HEUN = Sampler(
    name="HEUN",
    paper="Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, algorithm 1",
    order=2,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_levels(schedule, steps), at_the_end),
    evaluations=once_each_level,
    run=heun,
)
K_HEUN = replace(
    HEUN,
    name="K_HEUN",
    paper=f"{HEUN.paper}; its levels, equation 5",
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_karras_levels(schedule, steps), at_the_end),
)
