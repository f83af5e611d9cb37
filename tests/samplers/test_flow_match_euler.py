"""The flow sampler against diffusers' FlowMatchEulerDiscreteScheduler: same levels, same times, same latents."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from server.levels import Array, FlowScheduler, clean_from_flow, noise_schedule
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Estimate
from server.samplers.flow_match_euler import FLOW_MATCH_EULER

TOLERANCE = 3e-6  # relative to the norm of the latents; both sides are float32
SHAPE = (16, 8, 12)  # c h w
SD3 = FlowScheduler(num_train_timesteps=1000, shift=3.0)


def reference(card: FlowScheduler, steps: int) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=card.num_train_timesteps, shift=card.shift)
    scheduler.set_timesteps(steps)
    return scheduler


def velocity(x: Array, time: float, total: int) -> Array:
    """The best possible velocity for data that are one Gaussian of mean 0.3 and spread 0.5: exact, and not linear in
    time, so that a wrong level, a wrong time and a wrong step all show."""
    sigma = time / total
    alpha, variance = 1 - sigma, 0.25
    clean = 0.3 + alpha * variance / (alpha**2 * variance + sigma**2) * (x.astype(np.float64) - alpha * 0.3)
    noise = (x - alpha * clean) / sigma
    return (noise - clean).astype(np.float32)


@pytest.mark.parametrize("shift", [1.0, 1.15, 3.0, 6.5])
@pytest.mark.parametrize("total", [1000, 999])
def test_levels_and_times_are_diffusers_to_the_bit_for_all_step_counts(shift: float, total: int) -> None:
    card = FlowScheduler(total, shift)
    schedule = noise_schedule(card)
    for steps in range(1, 201):
        expected = reference(card, steps)
        taken = FLOW_MATCH_EULER.trajectory(schedule, steps).steps
        levels = [taken[0].here, *(step.there for step in taken)]
        assert [level.sigma for level in levels] == expected.sigmas.tolist()
        assert [level.time for level in levels[:-1]] == expected.timesteps.tolist()
        assert all(level.alpha == 1 - level.sigma for level in levels)


@pytest.mark.parametrize("steps", [1, 2, 5, 28, 200])
def test_every_step_gives_the_latents_of_diffusers(steps: int) -> None:
    schedule, expected = noise_schedule(SD3), reference(SD3, steps)
    trajectory = FLOW_MATCH_EULER.trajectory(schedule, steps)
    latents = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(7))
    stream = NoiseStream(7)
    sampling = FLOW_MATCH_EULER.run(trajectory.start_scale * stream.normal(SHAPE), trajectory.steps, stream)
    x, level = next(sampling)
    for number, t in enumerate(expected.timesteps):
        assert np.linalg.norm(x - latents[0].numpy()) < TOLERANCE * np.linalg.norm(x)
        raw = torch.from_numpy(velocity(latents[0].numpy(), float(t), 1000))[None]
        latents = expected.step(raw, t, latents).prev_sample
        ours = velocity(x, level.time, 1000)
        try:
            x, level = sampling.send(Estimate(x, schedule.clean_from(ours, x, level), ours, schedule.clean_from))
        except StopIteration as finished:
            assert number == steps - 1
            x = finished.value
    assert x.dtype == np.float32
    assert np.linalg.norm(x - latents[0].numpy()) < TOLERANCE * np.linalg.norm(x)


def test_the_velocity_gives_the_clean_image_back() -> None:
    stream = NoiseStream(0)
    clean, noise = stream.normal(SHAPE), stream.normal(SHAPE)
    for step in FLOW_MATCH_EULER.trajectory(noise_schedule(SD3), 5).steps:
        level = step.here
        x = np.float32(level.alpha) * clean + np.float32(level.sigma) * noise
        np.testing.assert_allclose(clean_from_flow(noise - clean, x, level), clean, atol=1e-6)


def test_it_is_no_choice_of_a_request() -> None:
    assert FLOW_MATCH_EULER.name not in SAMPLERS


@pytest.mark.parametrize(
    ("card", "wrong"),
    [
        (FlowScheduler(1000, 0.0), "shift 0"),
        (FlowScheduler(1000, float("nan")), "shift nan"),
        (FlowScheduler(1, 3), "1;"),
    ],
)
def test_a_flow_that_no_run_can_walk_is_refused(card: FlowScheduler, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        noise_schedule(card)
