"""LMS and KLMS: a linear multistep method on EDM's probability flow (k-diffusion's `sample_lms`; Adams-Bashforth for
uneven steps), on evenly spaced levels and on those of Karras et al. 2022."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from server.levels import Array
from server.noise import NoiseStream
from server.samplers.base import Sampler, Sampling, Step, once_each_level, slope
from server.samplers.trajectories import k_karras_levels, k_levels, k_trajectory

ORDER = 4


def lms(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """x goes along the integral of the polynomial through the last four slopes; through fewer where a run begins."""
    ks: tuple[float, ...] = ()  # newest first
    slopes: tuple[Array, ...] = ()
    for step in steps:
        here, there = step.here, step.there
        estimate = yield x, here
        ks = (here.k, *ks[: ORDER - 1])
        slopes = (slope(estimate, here), *slopes[: ORDER - 1])
        weighted = [weight * d for weight, d in zip(_weights(ks, there.k), slopes, strict=True)]
        x = there.alpha * (estimate.x / here.alpha + sum(weighted[1:], start=weighted[0]))
    return x


def _weights(ks: tuple[float, ...], k_there: float) -> list[float]:
    """The integrals from ks[0] to k_there of the Lagrange polynomials that are 1 at one of the ks and 0 at the others.
    Gauss's two points integrate polynomials of the third degree exactly."""
    half, middle = (k_there - ks[0]) / 2, (k_there + ks[0]) / 2
    points = np.array([middle - half / math.sqrt(3), middle + half / math.sqrt(3)])
    polynomials = [math.prod(((points - n) / (m - n) for n in ks if n != m), start=np.ones(2)) for m in ks]
    return [half * float(polynomial.sum()) for polynomial in polynomials]


LMS = Sampler(
    name="LMS",
    paper="k-diffusion, sample_lms; Adams-Bashforth, Hairer, Norsett, Wanner, Solving ODEs I, section III.5",
    order=ORDER,
    max_steps=200,
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_levels(schedule, steps)),
    evaluations=once_each_level,
    run=lms,
)
KLMS = replace(
    LMS,
    name="KLMS",
    paper=f"{LMS.paper}; levels of Karras et al. 2022, arXiv 2206.00364, equation 5",
    trajectory=lambda schedule, steps: k_trajectory(schedule, k_karras_levels(schedule, steps)),
)
