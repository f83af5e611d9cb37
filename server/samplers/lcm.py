"""LCM: Luo, Tan, Huang, Li, Zhao, "Latent Consistency Models" (2023), multistep sampling: guess the clean image, put
noise of the next level on it, guess again. For checkpoints that were distilled for it; others give blurred pictures."""

import math
from collections.abc import Sequence

import numpy as np

from server.levels import CLEAN, Array, Level, NoiseSchedule, level_at
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, Trajectory, in_steps, once_each_level

ORIGINAL_STEPS = 50  # of the solver that the checkpoints were distilled from: a run visits some of its timesteps
_TIMESTEP_SCALING = 10.0
_SPREAD = 0.5  # standard deviation of the data: the papers' sigma_data


def _trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """Every so many of the original timesteps, from the noisiest; behind the last the picture is clean."""
    stride = len(schedule.alphas_cumprod) // ORIGINAL_STEPS
    original = np.arange(ORIGINAL_STEPS, 0, -1) * stride - 1
    chosen = original[np.floor(np.linspace(0, ORIGINAL_STEPS, steps, endpoint=False)).astype(np.int64)]
    return Trajectory(in_steps((*(level_at(schedule, int(time)) for time in chosen), CLEAN)), start_scale=1.0)


def lcm(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """Nothing is drawn behind the step into clean."""
    for step in steps:
        estimate = yield x, step.here
        c_skip, c_out = _boundary(step.here)
        guess: Array = c_skip * estimate.x + c_out * estimate.clean
        there = step.there
        x = there.alpha * guess + there.sigma * noise.normal(x.shape) if there.sigma > 0 else guess
    return x


def _boundary(level: Level) -> tuple[float, float]:
    """The weights that make a consistency function the identity at timestep 0 (Song et al. 2023, arXiv 2303.01469)."""
    t = level.time * _TIMESTEP_SCALING
    return _SPREAD**2 / (t**2 + _SPREAD**2), t / math.sqrt(t**2 + _SPREAD**2)


LCM = Sampler(
    name="LCM",
    paper="Luo, Tan, Huang, Li, Zhao 2023, arXiv 2310.04378, multistep latent consistency sampling",
    order=0,  # no solver: of a true consistency model any number of steps has the distribution of the data
    max_steps=ORIGINAL_STEPS,
    trajectory=_trajectory,
    evaluations=once_each_level,
    run=lcm,
)
