"""DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models" (2021), deterministic (eta = 0)."""

from collections.abc import Sequence

from server.levels import Array, NoiseSchedule, leading, level_at, level_of_alpha_cumprod
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, Trajectory, in_steps, move, once_each_level


def _trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """The run ends at `final_alpha_cumprod`, which leaves SD 1.5's picture with the noise of timestep 0 in it."""
    levels = [level_at(schedule, int(t)) for t in leading(schedule, steps)]
    return Trajectory(
        in_steps((*levels, level_of_alpha_cumprod(schedule.final_alpha_cumprod, time=0.0))), start_scale=1.0
    )


def ddim(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """Equation (12) with sigma_t = 0."""
    for step in steps:
        estimate = yield x, step.here
        x = move(estimate.x, estimate.clean, step.here, step.there)
    return x


DDIM = Sampler(
    name="DDIM",
    paper="Song, Meng, Ermon 2021, arXiv 2010.02502, eta = 0",
    order=1,
    max_steps=200,
    trajectory=_trajectory,
    evaluations=once_each_level,
    run=ddim,
)
