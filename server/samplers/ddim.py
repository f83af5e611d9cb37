"""DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models" (2021), deterministic (eta = 0)."""

from collections.abc import Sequence

from server.levels import Array, NoiseSchedule, level_of_alpha_cumprod
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, Trajectory, in_steps, move, once_each_level
from server.samplers.trajectories import training_levels


def ddim_trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """The run ends at `final_alpha_cumprod`, which leaves SD 1.5's picture with the noise of timestep 0 in it."""
    last = level_of_alpha_cumprod(schedule.final_alpha_cumprod, time=0.0)
    return Trajectory(in_steps((*training_levels(schedule, steps), last)), start_scale=1.0)


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
    trajectory=ddim_trajectory,
    evaluations=once_each_level,
    run=ddim,
)
