"""DPM_SINGLE: DPM-Solver++(2S), Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++" (2022), algorithm 1."""

from collections.abc import Sequence

from server.levels import LINSPACE, Array, NoiseSchedule
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, Trajectory, lam, move, once_each_level
from server.samplers.trajectories import lambda_levels_spaced, lambda_trajectory


def dpm_solver_pp_2s(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """Two steps at a time: the first gives the middle, the second goes from where the first began. A last step that has
    no partner is first order, and so are both of a pair that ends at sigma = 0, where lambda is infinite."""
    for pair in (steps[i : i + 2] for i in range(0, len(steps), 2)):
        s = pair[0].here
        begin = yield x, s
        x = move(begin.x, begin.clean, s, pair[0].there)
        for step in pair[1:]:
            r, t = step.here, step.there
            middle = yield x, r
            if t.sigma == 0:
                x = move(middle.x, middle.clean, r, t)
            else:
                share = (lam(r) - lam(s)) / (lam(t) - lam(s))
                D = begin.clean + (middle.clean - begin.clean) / (2 * share)
                x = move(begin.x, D, s, t)
    return x


def _trajectory(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """Evenly spaced, whatever the checkpoint's config says: diffusers' scheduler knows no other spacing."""
    return lambda_trajectory(lambda_levels_spaced(LINSPACE, schedule, steps))


DPM_SINGLE = Sampler(
    name="DPM_SINGLE",
    paper="Lu et al. 2022, arXiv 2211.01095, algorithm 1",
    order=2,
    max_steps=200,
    trajectory=_trajectory,
    evaluations=once_each_level,
    run=dpm_solver_pp_2s,
)
