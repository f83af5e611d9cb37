"""DPM_PLUS_PLUS_SDE_KARRAS: DPM-Solver++ for the reverse SDE with one evaluation in the middle of each step
(k-diffusion's `sample_dpmpp_sde`, r = 1/2, eta = 1), on Karras's levels.

Its noise is the increment of one Brownian path in k, so that the middle and the end of a step see the same noise, and
more steps see more of the same path.
"""

from collections.abc import Sequence

from server.levels import Array
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, below, move, once_each_level
from server.samplers.dpm_2 import in_the_middle
from server.samplers.trajectories import k_karras_levels, k_trajectory


def dpm_solver_pp_sde(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """The clean image in the middle stands for the whole step. The step into clean is Euler's."""
    path = noise.brownian(x.shape)
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        if not step.via:
            x = move(estimate.x, estimate.clean, here, there)
        for middle in step.via:
            down, up = below(here, middle)
            half = move(estimate.x, estimate.clean, here, down) + up * path.between(here.k, middle.k)
            halfway = yield half, middle
            down, up = below(here, there)
            x = move(estimate.x, halfway.clean, here, down) + up * path.between(here.k, there.k)
    return x


DPM_PLUS_PLUS_SDE_KARRAS = Sampler(
    name="DPM_PLUS_PLUS_SDE_KARRAS",
    paper="k-diffusion, sample_dpmpp_sde; Lu et al. 2022, arXiv 2211.01095; levels of Karras et al. 2022, equation 5",
    order=2,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_karras_levels(schedule, steps), in_the_middle),
    evaluations=once_each_level,
    run=dpm_solver_pp_sde,
)
