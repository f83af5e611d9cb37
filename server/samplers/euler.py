"""K_EULER: Euler's method on EDM's probability flow, Karras, Aittala, Aila, Laine 2022, algorithm 1 without its second
order correction and without churn.

In k-diffusion's form the step is x' = x + (k' - k) * (x - clean) / k = clean + (k' / k) * (x - clean). Multiplied by
alpha' that is DDIM's step, so K_EULER differs from DDIM only in the levels it visits.
"""

from server.levels import NoiseSchedule, ks_at, level_of_k, linspace
from server.samplers.base import Sampler, Trajectory, in_steps, once_each_level
from server.samplers.ddim import ddim


def euler_trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """From k at T - 1 down to exactly clean. A linspace run starts at k_max * noise, which falls short of unit variance
    by alpha of the first level; a "leading" run starts at unit variance. Both are diffusers' `init_noise_sigma`."""
    spacing = linspace if schedule.spacing is None else schedule.spacing
    times = spacing(schedule, steps)
    levels = [level_of_k(float(k), float(t)) for k, t in zip(ks_at(schedule, times), times, strict=True)]
    start_scale = levels[0].sigma if spacing is linspace else 1.0
    return Trajectory(in_steps((*levels, level_of_k(0.0, time=0.0))), start_scale)


K_EULER = Sampler(
    name="K_EULER",
    paper="Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, algorithm 1 at first order",
    order=1,
    max_steps=200,
    trajectory=euler_trajectory,
    evaluations=once_each_level,
    run=ddim,
)
