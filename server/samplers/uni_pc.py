"""UNI_PC: Zhao, Bai, Rao, Zhou, Lu, "UniPC: A Unified Predictor-Corrector Framework" (2023), second order, predicting
the clean image, with B(h) = expm1(-h) ("bh2")."""

import math
from collections.abc import Sequence

from server.levels import Array
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, lam, move, once_each_level
from server.samplers.dpm_solver_multistep import Behind, halfway_on
from server.samplers.trajectories import lambda_levels, lambda_trajectory


def uni_pc(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """Every evaluation first corrects the step that led to it (UniC), at no cost, then predicts the next (UniP). At
    second order UniP's weight is 1/2, which makes it DPM-Solver++(2M)."""
    begin = x  # of the step before, corrected
    now: Behind | None = None
    before: Behind | None = None
    for step in steps:
        estimate = yield x, step.here
        x, found = estimate.x, (step.here, estimate.clean)
        if now is not None:
            x = move(begin, _corrected(found, now, before), now[0], step.here)
        begin, now, before = x, found, now
        x = move(begin, halfway_on(now, before, step.there), step.here, step.there)
    return x


def _corrected(found: Behind, now: Behind, before: Behind | None) -> Array:
    """D of the step from `now` to `found`, interpolated with what was found at its end: UniC-1, and UniC-2 where there
    is an image before, whose two equations for the weights rho are solved by hand."""
    (there, clean_there), (here, clean) = found, now
    if before is None:
        first: Array = clean + (clean_there - clean) / 2
        return first
    h = lam(there) - lam(here)
    r = (lam(before[0]) - lam(here)) / h
    B = math.expm1(-h)
    b_1 = (B / -h - 1) / B
    b_2 = 2 * ((B / -h - 1) / -h - 1 / 2) / B
    rho_1 = (b_1 - b_2) / (1 - r)
    rho_2 = b_1 - rho_1
    D: Array = clean + rho_1 / r * (before[1] - clean) + rho_2 * (clean_there - clean)
    return D


UNI_PC = Sampler(
    name="UNI_PC",
    paper="Zhao, Bai, Rao, Zhou, Lu 2023, arXiv 2302.04867, UniPC-2 with bh2",
    order=3,  # UniC raises the order of its predictor by one
    max_steps=200,
    trajectory=lambda schedule, steps: lambda_trajectory(lambda_levels(schedule, steps)),
    evaluations=once_each_level,
    run=uni_pc,
)
