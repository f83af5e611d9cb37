"""Each sampler against the exact solution where there is one: data that are a single Gaussian."""

import numpy as np
import pytest

from server.levels import Array, Level, clean_from_eps, level_of_k
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Estimate, Sampler, Step, in_steps

SPREAD = 0.5  # standard deviation of the data, mean 0
K_MAX, K_MIN = 10.0, 0.05
SHAPE = (4, 32, 32)  # c h w
DETERMINISTIC = sorted(SAMPLERS.keys() - {"K_EULER_ANCESTRAL"})


def clean_at(x: Array, level: Level) -> Array:
    """E[clean | x]: the best denoiser of that data."""
    gain = level.alpha * SPREAD**2 / ((level.alpha * SPREAD) ** 2 + level.sigma**2)
    return np.asarray(gain * x, dtype=np.float32)


def steps_evenly_in_log_k(steps: int) -> tuple[Step, ...]:
    return in_steps(level_of_k(float(k), time=0.0) for k in np.geomspace(K_MAX, K_MIN, steps + 1))


def run(sampler: Sampler, x: Array, steps: tuple[Step, ...]) -> Array:
    sampling = sampler.run(x, steps, NoiseStream(1))
    try:
        query, level = next(sampling)
        while True:
            clean = clean_at(query, level)
            eps = (query - level.alpha * clean) / level.sigma
            query, level = sampling.send(Estimate(query, clean_from_eps(eps, query, level), eps, clean_from_eps))
    except StopIteration as end:
        return np.asarray(end.value)


def error(sampler: Sampler, steps: int) -> float:
    """Relative, against x(k) / alpha = sqrt(k^2 + spread^2) * constant, the solution of the probability flow."""
    taken = steps_evenly_in_log_k(steps)
    start = NoiseStream(0).normal(SHAPE)
    spread_at = [level.alpha * float(np.hypot(level.k, SPREAD)) for level in (taken[0].here, taken[-1].there)]
    exact = spread_at[1] / spread_at[0] * start
    return float(np.linalg.norm(run(sampler, start, taken) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_error_falls_at_the_declared_order(name: str) -> None:
    sampler = SAMPLERS[name]
    errors = [error(sampler, steps) for steps in (32, 64, 128)]
    slopes = -np.diff(np.log2(errors))
    np.testing.assert_allclose(slopes, sampler.order, atol=0.2)


def test_ancestral_sampling_ends_with_the_spread_of_the_data() -> None:
    steps = steps_evenly_in_log_k(300)
    steps = (*steps, Step(steps[-1].there, level_of_k(0.0, time=0.0)))
    start = steps[0].here.alpha * float(np.hypot(K_MAX, SPREAD)) * NoiseStream(0).normal(SHAPE)
    latents = run(SAMPLERS["K_EULER_ANCESTRAL"], start, steps)
    # 4096 values: the standard error of a standard deviation is 1.1 %; without fresh noise it is 60 % off
    assert np.std(latents) == pytest.approx(SPREAD, rel=0.05)
    assert abs(np.corrcoef(latents.ravel(), start.ravel())[0, 1]) < 0.1  # what it started from is forgotten
