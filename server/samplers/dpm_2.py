"""DPM_2, its ancestral form, and both on Karras's levels: DPM-Solver-2, Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver"
(2022), algorithm 1, in k-diffusion's form (`sample_dpm_2`, `sample_dpm_2_ancestral`)."""

from collections.abc import Sequence
from dataclasses import replace

from server.levels import Array, Level, NoiseSchedule
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, along, below, move, once_each_level, slope
from server.samplers.trajectories import (
    Levels,
    halfway,
    k_karras_levels_told_whole,
    k_levels,
    k_trajectory,
)


def dpm_2(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """The slope of a step is that of its middle in log k. The step into clean is Euler's."""
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        d = slope(estimate, here)
        for middle in step.via:
            d = slope((yield move(estimate.x, estimate.clean, here, middle), middle), middle)
        x = along(estimate.x, d, here, there)
    return x


def dpm_2_ancestral(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """The same to below the next level, then fresh noise up to it; none behind the step into clean."""
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        if not step.via:
            x = move(estimate.x, estimate.clean, here, there)
        for middle in step.via:
            d = slope((yield move(estimate.x, estimate.clean, here, middle), middle), middle)
            down, up = below(here, there)
            x = along(estimate.x, d, here, down) + up * noise.normal(x.shape)
    return x


def in_the_middle(schedule: NoiseSchedule, here: Level, there: Level) -> Levels:
    """The second evaluation of DPM_2."""
    return (halfway(schedule, here, there),)


def in_the_middle_to_below(schedule: NoiseSchedule, here: Level, there: Level) -> Levels:
    """The second evaluation of DPM_2_ANCESTRAL."""
    down, _ = below(here, there)
    return (halfway(schedule, here, down),)


DPM_2 = Sampler(
    name="DPM_2",
    paper="Lu et al. 2022, arXiv 2206.00927, algorithm 1; k-diffusion, sample_dpm_2",
    order=2,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_levels(schedule, steps), in_the_middle),
    evaluations=once_each_level,
    run=dpm_2,
)
DPM_2_KARRAS = replace(
    DPM_2,
    name="DPM_2_KARRAS",
    paper=f"{DPM_2.paper}; levels of Karras et al. 2022, arXiv 2206.00364, equation 5",
    trajectory=lambda schedule, steps: k_trajectory(
        schedule, k_karras_levels_told_whole(schedule, steps), in_the_middle
    ),
)
DPM_2_ANCESTRAL = Sampler(
    name="DPM_2_ANCESTRAL",
    paper="k-diffusion, sample_dpm_2_ancestral",
    order=2,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_levels(schedule, steps), in_the_middle_to_below),
    evaluations=once_each_level,
    run=dpm_2_ancestral,
)
DPM_2_ANCESTRAL_KARRAS = replace(
    DPM_2_ANCESTRAL,
    name="DPM_2_ANCESTRAL_KARRAS",
    paper=f"{DPM_2_ANCESTRAL.paper}; levels of Karras et al. 2022, arXiv 2206.00364, equation 5",
    trajectory=lambda schedule, steps: k_trajectory(
        schedule, k_karras_levels_told_whole(schedule, steps), in_the_middle_to_below
    ),
)
