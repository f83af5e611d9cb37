"""Runs that begin in the middle, as image to image has them, or that end there, as with a refiner."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from samplers.references import (
    BROWNIAN,
    CARD,
    SHAPE,
    difference,
    inject,
    loop,
    mixture_model,
    scheduler_of,
    walk,
)
from samplers.test_parity import TOLERANCE

from server.levels import Array, noise_schedule
from server.noise import NoiseStream
from server.samplers import SAMPLERS

STEPS = 20
CASES = list(itertools.product(SAMPLERS, (1, 4, 11, 18, 19)))  # of 20 steps the first that is walked
RANDOM = np.random.RandomState(3)
PICTURE = RANDOM.normal(0, 1, SHAPE).astype(np.float32)  # latents of the given picture


def ours(name: str, first: int) -> Array:
    """StableDiffusionImg2ImgPipeline's draws: the start noise, then the steps'."""
    schedule, noise = noise_schedule(CARD), NoiseStream(7)
    steps = SAMPLERS[name].trajectory(schedule, STEPS).steps[first:]
    x = np.float32(steps[0].here.alpha) * PICTURE + np.float32(steps[0].here.sigma) * noise.normal(SHAPE)
    return walk(SAMPLERS[name].run(x, steps, noise), schedule, mixture_model(CARD))[0]


def theirs(name: str, first: int, repair: Any) -> Array:
    """The same of diffusers, whose scheduler `repair` may put right once its timesteps are cut."""
    scheduler = scheduler_of(name, CARD)
    scheduler.set_timesteps(STEPS)
    begin = first * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = repair(scheduler, scheduler.timesteps[begin:], first)
    if name == BROWNIAN:
        inject(NoiseStream(7).brownian(SHAPE), SAMPLERS[name].trajectory(noise_schedule(CARD), STEPS).steps, scheduler)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn((1, *SHAPE), generator=generator)
    latents = scheduler.add_noise(torch.from_numpy(PICTURE)[None], noise, timesteps[:1])
    return loop(scheduler, timesteps, latents, mixture_model(CARD), generator)


def as_it_is(scheduler: Any, timesteps: Any, first: int) -> Any:
    return timesteps


def pndm(scheduler: Any, timesteps: Any, first: int) -> Any:
    """diffusers cuts PNDM's timesteps, of which the second comes twice, as if there were one a step, but its counter
    begins at 0: the second evaluation of a run from the middle is taken for the end of the first step, a timestep too
    late, and one evaluation is lost. Right is a start-up of its own, as in a run from the beginning."""
    each_steps = [*scheduler.timesteps[:1], *scheduler.timesteps[2:]][first:]
    return torch.stack([*each_steps[:2], *each_steps[1:]])


def of_its_own(scheduler: Any, timesteps: Any, first: int) -> Any:
    """diffusers' LMS takes the order of a step from its number in the whole run: begun in the middle, it weighs four
    slopes where it has one, and drops the others' weights. Its singlestep method takes the pairs from there too, so
    that a run may begin with half a pair. Right is a run of its own over the levels that are left."""
    scheduler.sigmas, scheduler.timesteps = scheduler.sigmas[first:], timesteps
    if hasattr(scheduler, "order_list"):
        scheduler.order_list = scheduler.get_order_list(len(timesteps))
    scheduler.set_begin_index(0)
    return timesteps


REPAIRS = {"PNDM": pndm, "LMS": of_its_own, "KLMS": of_its_own, "DPM_SINGLE": of_its_own}


@pytest.mark.parametrize(("name", "first"), CASES)
def test_a_run_that_begins_in_the_middle_gives_the_latents_of_diffusers(name: str, first: int) -> None:
    reference = theirs(name, first, REPAIRS.get(name, as_it_is))
    assert difference(ours(name, first), reference) < TOLERANCE


@pytest.mark.parametrize("name", REPAIRS)
def test_diffusers_own_start_in_the_middle_is_another_where_it_is_wrong(name: str) -> None:
    """So that a repair that diffusers no longer needs is noticed."""
    assert difference(theirs(name, 11, as_it_is), theirs(name, 11, REPAIRS[name])) > 10 * TOLERANCE


@pytest.mark.parametrize("cut", [1, 7, 19])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_in_two_parts_visits_what_a_whole_one_visits(name: str, cut: int) -> None:
    """Each part has its own start-up; the levels, and where the picture is left, are the same."""
    schedule, sampler, model = noise_schedule(CARD), SAMPLERS[name], mixture_model(CARD)
    steps = sampler.trajectory(schedule, STEPS).steps
    noise = NoiseStream(7)
    x, asked = walk(sampler.run(noise.normal(SHAPE), steps[:cut], noise), schedule, model)
    assert len(asked) == sampler.evaluations(steps[:cut])
    latents, asked = walk(sampler.run(x, steps[cut:], noise), schedule, model)
    assert len(asked) == sampler.evaluations(steps[cut:])
    assert asked[0] is steps[cut].here
    # where the first part ends, x has the spread of its level; whole ones' pictures have it too
    level = steps[cut].here
    assert np.std(x) == pytest.approx(np.hypot(level.alpha * 1.02, level.sigma), rel=0.25)
    assert 0.6 < np.std(latents) < 1.4
