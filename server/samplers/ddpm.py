"""DDPM: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models" (2020), algorithm 2 with the smaller variance.

Its step is K_EULER_ANCESTRAL's: the posterior of x' given x and clean has the mean of a step to k'^2 / k and the
variance of the noise that is added back. It differs in the levels that it visits.
"""

from server.levels import CLEAN, NoiseSchedule
from server.samplers.base import Sampler, Trajectory, in_steps, once_each_level
from server.samplers.euler_ancestral import euler_ancestral
from server.samplers.trajectories import training_levels


def _trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """Unlike DDIM it ends exactly clean."""
    return Trajectory(in_steps((*training_levels(schedule, steps), CLEAN)), start_scale=1.0)


DDPM = Sampler(
    name="DDPM",
    paper="Ho, Jain, Abbeel 2020, arXiv 2006.11239, equations (6) and (7)",
    order=1,
    max_steps=200,
    trajectory=_trajectory,
    evaluations=once_each_level,
    run=euler_ancestral,
)
