"""DPM-Solver++(2M) and its SDE: Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++" (2022), algorithm 2.

Four names: both of them on evenly spaced levels and on those of Karras et al. 2022.
"""

from collections.abc import Sequence
from dataclasses import replace

from server.levels import Array, Level
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, below, lam, move, once_each_level
from server.samplers.trajectories import lambda_karras_levels, lambda_levels, lambda_trajectory

Behind = tuple[Level, Array]  # a level and the clean image behind x there: c h w


def dpm_solver_pp_2m(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """Algorithm 2."""
    before: Behind | None = None
    for step in steps:
        estimate = yield x, step.here
        D = halfway_on((step.here, estimate.clean), before, step.there)
        x = move(estimate.x, D, step.here, step.there)
        before = step.here, estimate.clean
    return x


def sde_dpm_solver_pp_2m(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """The same for the reverse SDE: an ancestral step towards D. The last step draws too, times 0: diffusers' stream
    does."""
    before: Behind | None = None
    for step in steps:
        estimate = yield x, step.here
        D = halfway_on((step.here, estimate.clean), before, step.there)
        down, up = below(step.here, step.there)
        x = move(estimate.x, D, step.here, down) + up * noise.normal(x.shape)
        before = step.here, estimate.clean
    return x


def halfway_on(now: Behind, before: Behind | None, there: Level) -> Array:
    """D: the clean image extrapolated from the last two to the middle of the step in lambda. First order where there is
    no earlier image, and into sigma = 0, where lambda is infinite."""
    here, clean = now
    if before is None or there.sigma == 0:
        return clean
    r = (lam(here) - lam(before[0])) / (lam(there) - lam(here))
    D: Array = clean + (clean - before[1]) / (2 * r)
    return D


DPM_SOLVER_MULTISTEP = Sampler(
    name="DPM_SOLVER_MULTISTEP",
    paper="Lu et al. 2022, arXiv 2211.01095, algorithm 2",
    order=2,
    max_steps=200,
    trajectory=lambda schedule, steps: lambda_trajectory(lambda_levels(schedule, steps)),
    evaluations=once_each_level,
    run=dpm_solver_pp_2m,
)
DPM_PLUS_PLUS_2M_KARRAS = replace(
    DPM_SOLVER_MULTISTEP,
    name="DPM_PLUS_PLUS_2M_KARRAS",
    paper=f"{DPM_SOLVER_MULTISTEP.paper}; levels of Karras et al. 2022, arXiv 2206.00364, equation 5",
    trajectory=lambda schedule, steps: lambda_trajectory(lambda_karras_levels(schedule, steps)),
)
DPM_PLUS_PLUS_2M_SDE = replace(
    DPM_SOLVER_MULTISTEP,
    name="DPM_PLUS_PLUS_2M_SDE",
    paper="Lu et al. 2022, arXiv 2211.01095, SDE-DPM-Solver++(2M)",
    run=sde_dpm_solver_pp_2m,
)
DPM_PLUS_PLUS_2M_SDE_KARRAS = replace(
    DPM_PLUS_PLUS_2M_SDE,
    name="DPM_PLUS_PLUS_2M_SDE_KARRAS",
    paper=f"{DPM_PLUS_PLUS_2M_SDE.paper}; levels of Karras et al. 2022, arXiv 2206.00364, equation 5",
    trajectory=DPM_PLUS_PLUS_2M_KARRAS.trajectory,
)
