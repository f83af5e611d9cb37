"""K_EULER_ANCESTRAL: K_EULER that steps below the next level and adds fresh noise up to it (k-diffusion's
`sample_euler_ancestral`)."""

from collections.abc import Sequence

from server.levels import Array
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, below, move, once_each_level
from server.samplers.trajectories import k_levels, k_trajectory


def euler_ancestral(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """The last step draws too, times 0: diffusers' stream does."""
    for step in steps:
        estimate = yield x, step.here
        down, up = below(step.here, step.there)
        x = move(estimate.x, estimate.clean, step.here, down) + up * noise.normal(x.shape)
    return x


K_EULER_ANCESTRAL = Sampler(
    name="K_EULER_ANCESTRAL",
    paper="k-diffusion, sample_euler_ancestral; posterior variance of Ho et al. 2020, arXiv 2006.11239",
    order=1,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_levels(schedule, steps)),
    evaluations=once_each_level,
    run=euler_ancestral,
)
