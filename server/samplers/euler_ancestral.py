"""K_EULER_ANCESTRAL: K_EULER that steps below the next level and adds fresh noise up to it (k-diffusion's
`sample_euler_ancestral`; DDPM's posterior variance, Ho et al. 2020, in k-diffusion's form)."""

import math
from collections.abc import Sequence

from server.levels import Array, Level
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, move, once_each_level
from server.samplers.euler import euler_trajectory


def euler_ancestral(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """k_down^2 + k_up^2 = k'^2, with k_down = k'^2 / k. The last step draws too, times 0: diffusers' stream does."""
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        k_down = there.k**2 / here.k
        k_up = math.sqrt(max(there.k**2 - k_down**2, 0.0))
        down = Level(alpha=there.alpha, sigma=there.alpha * k_down, time=there.time)
        x = move(estimate.x, estimate.clean, here, down) + there.alpha * k_up * noise.normal(x.shape)
    return x


K_EULER_ANCESTRAL = Sampler(
    name="K_EULER_ANCESTRAL",
    paper="k-diffusion, sample_euler_ancestral; posterior variance of Ho et al. 2020, arXiv 2006.11239",
    order=1,
    max_steps=200,
    trajectory=euler_trajectory,
    evaluations=once_each_level,
    run=euler_ancestral,
)
