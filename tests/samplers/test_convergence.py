"""Each sampler against the exact solution where there is one: data that are a single Gaussian.

The best denoiser of such data is linear, and so is a whole run: its latents are a sum of weights times the start and
times each value that it drew. So a run is made once, on vectors whose entries are those weights (start, first draw,
second draw, ...), in float64; their norm is the exact standard deviation of the latents. The error that a sampler's
order speaks of is that of the deviation: for a method without noise that is the error of the latents themselves.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from samplers.references import CARD

from server.levels import Level, NoiseSchedule, clean_from_eps, level_of_k, noise_schedule
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Estimate, Sampler, Step, in_steps
from server.samplers.dpm_2 import in_the_middle, in_the_middle_to_below
from server.samplers.heun import at_the_end

SPREAD = 0.5  # standard deviation of the data, mean 0
K_MAX, K_MIN = 100.0, 0.05  # far above the data, as the start-up of a multistep method has it
STEPS = (128, 256, 512)
SCHEDULE = noise_schedule(CARD)
Via = Callable[[NoiseSchedule, Level, Level], tuple[Level, ...]]
VIA: dict[str, Via] = {
    "HEUN": at_the_end,
    "K_HEUN": at_the_end,
    "DPM_2": in_the_middle,
    "DPM_2_KARRAS": in_the_middle,
    "DPM_2_ANCESTRAL": in_the_middle_to_below,
    "DPM_2_ANCESTRAL_KARRAS": in_the_middle_to_below,
    "DPM_PLUS_PLUS_SDE_KARRAS": in_the_middle,
}
SOLVERS = [name for name, sampler in SAMPLERS.items() if sampler.order > 0]
STOCHASTIC = {
    "DDPM",
    "K_EULER_ANCESTRAL",
    "DPM_PLUS_PLUS_2M_SDE",
    "DPM_PLUS_PLUS_2M_SDE_KARRAS",
    "DPM_2_ANCESTRAL",
    "DPM_2_ANCESTRAL_KARRAS",
    "DPM_PLUS_PLUS_SDE_KARRAS",
}


class Weights:
    """In the place of a noise stream: each draw is a value of its own, as is each stretch of a Brownian path."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        levels = [level for step in steps for level in (step.here, *step.via, step.there)]
        self.ks = np.array(sorted({float(f"{level.k:.9g}") for level in levels}))
        self.size = 1 + max(2 * len(steps), len(self.ks))
        self.drawn = 0

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.drawn += 1
        return self.unit(slice(self.drawn, self.drawn + 1), 1.0)

    def brownian(self, shape: tuple[int, ...]) -> "Weights":
        return self

    def between(self, k: float, k_there: float) -> np.ndarray:
        low, high = sorted(int(np.abs(self.ks - each).argmin()) for each in (k, k_there))
        stretches = np.diff(self.ks[low : high + 1])
        sign = 1 if k < k_there else -1
        return self.unit(slice(1 + low, 1 + high), sign * np.sqrt(stretches / stretches.sum()))

    def unit(self, where: slice, values: Any) -> np.ndarray:
        weights = np.zeros(self.size)
        weights[where] = values
        return weights


def clean_at(x: np.ndarray, level: Level) -> np.ndarray:
    """E[clean | x]: the best denoiser of that data."""
    return level.alpha * SPREAD**2 / ((level.alpha * SPREAD) ** 2 + level.sigma**2) * x


def steps_evenly_in_log_k(name: str, count: int) -> tuple[Step, ...]:
    steps = in_steps(level_of_k(float(k), time=0.0) for k in np.geomspace(K_MAX, K_MIN, count + 1))
    if name not in VIA:
        return steps
    return tuple(Step(step.here, step.there, VIA[name](SCHEDULE, step.here, step.there)) for step in steps)


def run(sampler: Sampler, x: np.ndarray, steps: tuple[Step, ...], noise: Any) -> np.ndarray:
    sampling = sampler.run(x, steps, noise)
    try:
        query, level = next(sampling)
        while True:
            clean = clean_at(query, level)
            eps = (query - level.alpha * clean) / level.sigma
            query, level = sampling.send(Estimate(query, clean, eps, clean_from_eps))
    except StopIteration as end:
        return np.asarray(end.value)


def deviation(level: Level) -> float:
    """Of x at a level."""
    return level.alpha * float(np.hypot(level.k, SPREAD))


def weights_of(name: str, count: int) -> tuple[np.ndarray, Step]:
    """The weights of the latents, the start's first, and the last step."""
    steps = steps_evenly_in_log_k(name, count)
    noise = Weights(steps)
    return run(SAMPLERS[name], noise.unit(slice(0, 1), deviation(steps[0].here)), steps, noise), steps[-1]


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_falls_at_the_declared_order(name: str) -> None:
    errors = []
    for count in STEPS:
        weights, last = weights_of(name, count)
        errors.append(abs(float(np.linalg.norm(weights)) / deviation(last.there) - 1))
    slopes = -np.diff(np.log2(errors))
    np.testing.assert_allclose(slopes, SAMPLERS[name].order, atol=0.2)


@pytest.mark.parametrize("name", SOLVERS)
def test_only_stochastic_methods_draw_and_they_forget_what_they_started_from(name: str) -> None:
    weights, last = weights_of(name, 64)
    share = abs(weights[0]) / deviation(last.there)
    assert share < 0.01 if name in STOCHASTIC else share == pytest.approx(1, abs=0.05)
    assert (np.count_nonzero(weights[1:]) > 0) == (name in STOCHASTIC)


def test_more_steps_of_the_brownian_method_converge_to_the_picture_of_its_path() -> None:
    name, shape = "DPM_PLUS_PLUS_SDE_KARRAS", (4, 8, 8)

    def picture(count: int, seed: int) -> np.ndarray:
        steps = steps_evenly_in_log_k(name, count)
        start = deviation(steps[0].here) * NoiseStream(0).normal(shape)
        return run(SAMPLERS[name], start, steps, NoiseStream(seed))

    exact = picture(512, 5)
    errors = [float(np.linalg.norm(picture(count, 5) - exact) / np.linalg.norm(exact)) for count in (32, 64, 128)]
    assert min(-np.diff(np.log2(errors))) > 0.6  # of one path: the strong order is about 1
    assert errors[-1] < 0.05
    assert np.linalg.norm(picture(64, 6) - exact) / np.linalg.norm(exact) > 1  # another seed's path


@pytest.mark.parametrize("count", [1, 2, 4, 50])
def test_lcm_has_the_spread_of_the_data_where_the_model_is_a_consistency_function(count: int) -> None:
    """That of a Gaussian takes x to the end of its path of the probability flow."""
    lcm = SAMPLERS["LCM"]
    steps = lcm.trajectory(SCHEDULE, count).steps
    noise = Weights(steps)
    x = noise.unit(slice(0, 1), deviation(steps[0].here))
    sampling = lcm.run(x, steps, noise)  # type: ignore[arg-type]
    try:
        x, level = next(sampling)
        while True:
            clean = x * SPREAD / deviation(level)
            x, level = sampling.send(Estimate(x, clean, clean, lambda raw, x, level: raw))
    except StopIteration as end:
        latents = np.asarray(end.value)
    assert np.linalg.norm(latents) == pytest.approx(SPREAD, rel=0.005)  # c_out at timestep 19 is 0.9999967
    assert noise.drawn == count - 1
