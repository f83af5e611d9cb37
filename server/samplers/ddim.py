"""DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models" (2021), deterministic (eta = 0)."""

from collections.abc import Sequence
from itertools import pairwise

from server.levels import Array, Level, NoiseSchedule, leading, level_at, level_of_alpha_cumprod
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Trajectory, move, one_a_step


def _trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """The run ends at `final_alpha_cumprod`, which leaves SD 1.5's picture with the noise of timestep 0 in it."""
    levels = [level_at(schedule, int(t)) for t in leading(schedule, steps)]
    return Trajectory((*levels, level_of_alpha_cumprod(schedule.final_alpha_cumprod, time=0.0)), start_scale=1.0)


def ddim(x: Array, levels: Sequence[Level], noise: NoiseStream) -> Sampling:
    """Equation (12) with sigma_t = 0."""
    for here, there in pairwise(levels):
        estimate = yield x, here
        x = move(estimate.x, estimate.clean, here, there)
    return x


DDIM = Sampler(
    name="DDIM",
    paper="Song, Meng, Ermon 2021, arXiv 2010.02502, eta = 0",
    order=1,
    max_steps=200,
    trajectory=_trajectory,
    evaluations=one_a_step,
    run=ddim,
)
