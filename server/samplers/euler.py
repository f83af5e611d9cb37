"""K_EULER: Euler's method on EDM's probability flow, Karras, Aittala, Aila, Laine 2022, algorithm 1 without its second
order correction and without churn.

In k-diffusion's form the step is x' = x + (k' - k) * (x - clean) / k = clean + (k' / k) * (x - clean). Multiplied by
alpha' that is DDIM's step, so K_EULER differs from DDIM only in the levels it visits.
"""

from server.samplers.base import Sampler, once_each_level
from server.samplers.ddim import ddim
from server.samplers.trajectories import k_levels, k_trajectory

K_EULER = Sampler(
    name="K_EULER",
    paper="Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, algorithm 1 at first order",
    order=1,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_levels(schedule, steps)),
    evaluations=once_each_level,
    run=ddim,
)
