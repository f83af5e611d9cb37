"""Each sampler against its diffusers scheduler: same start noise, same model, same steps, same latents."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mediagen.v1 import image_pb2 as pb
from samplers.references import (
    CARD,
    LINEAR,
    REFERENCES,
    SHAPE,
    difference,
    mixture_model,
    ours,
    scheduler_of,
    theirs,
    walk,
)

from server.levels import Array, Scheduler, noise_schedule
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Estimate

# Relative to the norm of the latents; both sides are float32. Seen: at most 3e-6 from five steps on, most of it where
# diffusers forms the ancestral k_down as a difference of squares. One or two steps go from k = 14.6 (almost) to clean
# at once, and their roundings are those of an x 15 times larger than the picture. Seen: 9e-6; 5e-5 of the ancestral
# DPM_2, whose middle is that difference's square root.
TOLERANCE = 1e-5
TOLERANCE_OF_TWO_STEPS = 1e-4
# The last of KLMS's 200 steps is twenty times as long as the one before: 4th order extrapolation with weights of 33
# magnifies either side's rounding. Seen: 8e-5, and 4e-5 and 7e-5 between either and the same in float64.
TOLERANCE_OF_LONG_KLMS = 2e-4
STEPS = (1, 2, 5, 20, 50, 200)
SLOW_REFERENCES = {"DPM_2", "DPM_2_KARRAS", "DPM_2_ANCESTRAL", "DPM_2_ANCESTRAL_KARRAS"}  # to set the timesteps of


def _runs() -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked."""
    for name, steps, prediction_type in itertools.product(SAMPLERS, STEPS, ("epsilon", "v_prediction")):
        if steps <= SAMPLERS[name].max_steps:
            marks = () if prediction_type == "epsilon" or steps in (5, 20) else (pytest.mark.thorough,)
            yield pytest.param(name, steps, prediction_type, marks=marks, id=f"{name}-{steps}-{prediction_type}")


def _counts() -> Iterator[Any]:
    """Every step count, a few of them in a quick run where diffusers takes long."""
    for name in SAMPLERS:
        counts, slow = range(1, SAMPLERS[name].max_steps + 1), name in SLOW_REFERENCES
        yield pytest.param(name, counts, marks=pytest.mark.thorough if slow else (), id=f"{name}-all")
        if slow:
            yield pytest.param(name, (1, 2, 3, 4, 7, 30, 49, 200), id=f"{name}-some")


def tolerance(name: str, steps: int) -> float:
    if (name, steps) == ("KLMS", 200):
        return TOLERANCE_OF_LONG_KLMS
    return TOLERANCE_OF_TWO_STEPS if steps <= 2 else TOLERANCE


@pytest.mark.parametrize(("name", "steps", "prediction_type"), list(_runs()))
def test_a_sampler_gives_the_latents_of_its_diffusers_scheduler(name: str, steps: int, prediction_type: str) -> None:
    card, sampler = replace(CARD, prediction_type=prediction_type), SAMPLERS[name]
    assert difference(ours(sampler, card, steps, 7), theirs(name, sampler, card, steps, 7)) < tolerance(name, steps)


@pytest.mark.parametrize(
    "card",
    [
        replace(CARD, set_alpha_to_one=True),
        replace(CARD, beta_schedule="linear"),
        replace(CARD, steps_offset=0),
        LINEAR,
        replace(LINEAR, prediction_type="v_prediction"),
        replace(LINEAR, num_train_timesteps=999),
    ],
    ids=["set_alpha_to_one", "linear", "steps_offset", "betas_of_2020", "betas_of_2020_v", "999_timesteps"],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_follows_the_other_scheduler_configs_too(name: str, card: Scheduler) -> None:
    sampler = SAMPLERS[name]
    assert difference(ours(sampler, card, 7, 7), theirs(name, sampler, card, 7, 7)) < TOLERANCE


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_config_that_names_a_spacing_is_followed(name: str, spacing: str) -> None:
    # 8 divides 1000. Where the steps do not, diffusers' DDIM and PNDM step to t - floor(T / steps) and then tell the
    # model the next timestep of the trailing spacing, which is another one; ours step to the one that it is told.
    card, sampler = replace(CARD, timestep_spacing=spacing), SAMPLERS[name]
    assert difference(ours(sampler, card, 8, 7), theirs(name, sampler, card, 8, 7)) < TOLERANCE


def told(name: str, card: Any, steps: int) -> list[float]:
    """The timesteps that a model is told in a run."""
    taken = SAMPLERS[name].trajectory(noise_schedule(card), steps).steps
    times = [level.time for step in taken for level in (step.here, *step.via)]
    if name == "PNDM" and steps > 1:  # its first step looks at its end as well
        times.insert(1, times[1])
    return times


@pytest.mark.parametrize(("name", "counts"), list(_counts()))
def test_the_model_is_told_diffusers_timesteps_at_every_step_count(name: str, counts: Sequence[int]) -> None:
    scheduler = scheduler_of(name, CARD)
    for steps in counts:
        scheduler.set_timesteps(steps)
        # fractions are those of logarithms: diffusers', in float32, are up to 3e-4 off
        np.testing.assert_allclose(told(name, CARD, steps), scheduler.timesteps.tolist(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_is_told_diffusers_timesteps_of_other_spacings(name: str, spacing: str) -> None:
    card = replace(CARD, timestep_spacing=spacing)
    scheduler = scheduler_of(name, card)
    for steps in (1, 2, 7, 48, 50, 112):  # of 48 and 112 some timesteps lie between two whole ones
        if steps <= SAMPLERS[name].max_steps:
            scheduler.set_timesteps(steps)
            np.testing.assert_allclose(told(name, card, steps), scheduler.timesteps.tolist(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_asks_as_often_as_it_says_and_at_the_levels_of_its_steps(name: str, steps: int) -> None:
    schedule, sampler = noise_schedule(CARD), SAMPLERS[name]
    taken = sampler.trajectory(schedule, steps).steps
    latents, asked = walk(
        sampler.run(NoiseStream(0).normal(SHAPE), taken, NoiseStream(1)), schedule, mixture_model(CARD)
    )
    assert len(asked) == sampler.evaluations(taken)
    assert [level.time for level in asked] == told(name, CARD, steps)
    named = {level for step in taken for level in (step.here, *step.via)}
    assert set(asked) == named
    assert all(before.there is after.here for before, after in itertools.pairwise(taken))
    assert latents.dtype == np.float32
    assert latents.shape == SHAPE


TWICE = (1, 3, 59)  # all steps but the last
EVALUATIONS = dict.fromkeys(SAMPLERS, (1, 2, 30)) | {
    "PNDM": (1, 3, 31),
    "HEUN": TWICE,
    "K_HEUN": TWICE,
    "DPM_2": TWICE,
    "DPM_2_KARRAS": TWICE,
    "DPM_2_ANCESTRAL": TWICE,
    "DPM_2_ANCESTRAL_KARRAS": TWICE,
    "DPM_PLUS_PLUS_SDE_KARRAS": TWICE,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_of_1_2_and_30_steps_are_the_apis(name: str) -> None:
    sampler, schedule = SAMPLERS[name], noise_schedule(CARD)
    runs = [sampler.trajectory(schedule, steps).steps for steps in (1, 2, 30)]
    assert tuple(sampler.evaluations(steps) for steps in runs) == EVALUATIONS[name]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_goes_on_from_the_x_that_the_driver_used(name: str) -> None:
    schedule, sampler = noise_schedule(CARD), SAMPLERS[name]
    steps = sampler.trajectory(schedule, 4).steps[:1]
    blended = NoiseStream(2).normal(SHAPE)

    def one_step(start: Array) -> Array:
        """The driver puts `blended` before every evaluation, whatever the sampler yields."""
        sampling = sampler.run(start, steps, NoiseStream(1))
        next(sampling)
        clean = np.zeros(SHAPE, np.float32)
        try:
            while True:
                sampling.send(Estimate(blended, clean, clean, lambda raw, x, level: raw))
        except StopIteration as end:
            return np.asarray(end.value)

    np.testing.assert_array_equal(one_step(blended), one_step(blended + 1))


def test_all_names_of_the_api_are_served_and_ddim_is_the_default() -> None:
    names = [name.removeprefix("SAMPLER_") for name in pb.Sampler.keys()[1:]]
    assert sorted(SAMPLERS) == sorted(names)
    assert next(iter(SAMPLERS)) == "DDIM"
    assert list(SAMPLERS)[1:] == [name for name in names if name != "DDIM"]
    assert REFERENCES.keys() == SAMPLERS.keys()
