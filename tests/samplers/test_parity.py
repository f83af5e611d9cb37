"""Each sampler against its diffusers scheduler: same start noise, same model, same steps, same latents.

The model is exact arithmetic instead of a network: the best possible denoiser of a two-mode mixture, told only x and
the timestep, so that a wrong level, a wrong timestep and a wrong step all show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from server.levels import Array, Level, NoiseSchedule, Scheduler, noise_schedule
from server.noise import NoiseStream
from server.samplers import SAMPLERS
from server.samplers.base import Estimate, Sampler, Sampling, Step, Trajectory
from server.samplers.ddim import ddim

# Relative to the norm of the latents; both sides are float32. Seen: at most 3e-6 from five steps on, most of it
# from the ancestral k_down, which diffusers forms as a difference of squares. One or two steps go from k = 14.6
# (almost) to clean at once, and their roundings are those of an x 15 times larger than the picture. Seen: 9e-6.
TOLERANCE = 1e-5
TOLERANCE_OF_TWO_STEPS = 3e-5
SHAPE = (4, 16, 24)  # c h w
STEPS = (1, 2, 5, 20, 50, 200)
CARD = Scheduler(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    steps_offset=1,
    set_alpha_to_one=False,
)
Model = Callable[[Array, float], Array]  # (x, timestep) -> raw output


@dataclass(frozen=True)
class Reference:
    """The diffusers scheduler behind a name."""

    scheduler: Any
    options: dict[str, object]


REFERENCES = {
    "DDIM": Reference(DDIMScheduler, {}),
    "K_EULER": Reference(EulerDiscreteScheduler, {}),
    "K_EULER_ANCESTRAL": Reference(EulerAncestralDiscreteScheduler, {}),
    "DPM_PLUS_PLUS_2M_KARRAS": Reference(DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}


def mixture_model(card: Scheduler) -> Model:
    """E[clean | x] when every value of clean is -1.2 or 0.8, each give or take 0.4; as eps or v."""
    means, spread, shares = np.array([-1.2, 0.8]), 0.4, np.array([0.35, 0.65])
    alphas_cumprod = noise_schedule(card).alphas_cumprod.astype(np.float64)

    def model(x: Array, timestep: float) -> Array:
        alpha_cumprod = np.interp(timestep, np.arange(len(alphas_cumprod)), alphas_cumprod)
        alpha, sigma = np.sqrt(alpha_cumprod), np.sqrt(1 - alpha_cumprod)
        variance = (alpha * spread) ** 2 + sigma**2
        offset = x.astype(np.float64)[..., None] - alpha * means  # c h w mode
        odds = shares * np.exp(-(offset**2) / (2 * variance))
        odds /= odds.sum(axis=-1, keepdims=True)
        clean = (odds * (means + alpha * spread**2 / variance * offset)).sum(axis=-1)
        eps = (x - alpha * clean) / sigma
        raw = eps if card.prediction_type == "epsilon" else alpha * eps - sigma * clean
        return np.asarray(raw, dtype=np.float32)

    return model


def walk(sampling: Sampling, schedule: NoiseSchedule, model: Model) -> tuple[Array, list[Level]]:
    """Drive a sampler to its end; its latents and the levels that it asked about."""
    asked: list[Level] = []
    try:
        x, level = next(sampling)
        while True:
            asked.append(level)
            raw = model(x, level.time)
            x, level = sampling.send(Estimate(x, schedule.clean_from(raw, x, level), raw, schedule.clean_from))
    except StopIteration as end:
        return end.value, asked


def ours(sampler: Sampler, card: Scheduler, steps: int, seed: int) -> Array:
    schedule, noise = noise_schedule(card), NoiseStream(seed)
    trajectory = sampler.trajectory(schedule, steps)
    x = trajectory.start_scale * noise.normal(SHAPE)
    return walk(sampler.run(x, trajectory.steps, noise), schedule, mixture_model(card))[0]


def reference_scheduler(name: str, card: Scheduler, steps: int) -> Any:
    """As the pipeline gets it: from the config of SD 1.5's own PNDM scheduler."""
    own = {"skip_prk_steps": True, "clip_sample": False, "trained_betas": None}
    stored = {field: value for field, value in (vars(card) | own).items() if field != "timestep_spacing"}
    if card.timestep_spacing is not None:
        stored["timestep_spacing"] = card.timestep_spacing
    reference = REFERENCES[name]
    scheduler = reference.scheduler.from_config(PNDMScheduler.from_config(stored).config, **reference.options)
    scheduler.set_timesteps(steps)
    return scheduler


def theirs(name: str, card: Scheduler, steps: int, seed: int) -> Array:
    """The loop of diffusers' StableDiffusionPipeline."""
    scheduler, model = reference_scheduler(name, card, steps), mixture_model(card)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, *SHAPE), generator=generator) * scheduler.init_noise_sigma
    takes_generator = {"generator": generator} if name == "K_EULER_ANCESTRAL" else {}
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(latents, t)
        raw = torch.from_numpy(model(x[0].numpy(), float(t)))[None]
        latents = scheduler.step(raw, t, latents, **takes_generator).prev_sample
    return np.asarray(latents[0].numpy())


def difference(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_a_sampler_gives_the_latents_of_its_diffusers_scheduler(name: str, steps: int, prediction_type: str) -> None:
    card = replace(CARD, prediction_type=prediction_type)
    tolerance = TOLERANCE_OF_TWO_STEPS if steps <= 2 else TOLERANCE
    assert difference(ours(SAMPLERS[name], card, steps, seed=7), theirs(name, card, steps, seed=7)) < tolerance


@pytest.mark.parametrize("variant", [{"set_alpha_to_one": True}, {"beta_schedule": "linear"}, {"steps_offset": 0}])
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_a_sampler_follows_the_other_scheduler_configs_too(name: str, variant: dict[str, Any]) -> None:
    card = replace(CARD, **variant)
    assert difference(ours(SAMPLERS[name], card, 7, seed=7), theirs(name, card, 7, seed=7)) < TOLERANCE


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_a_config_that_names_leading_spacing_is_followed(name: str) -> None:
    card = replace(CARD, timestep_spacing="leading")
    assert difference(ours(SAMPLERS[name], card, 7, seed=7), theirs(name, card, 7, seed=7)) < TOLERANCE


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_the_model_is_told_diffusers_timesteps_at_every_step_count(name: str) -> None:
    schedule = noise_schedule(CARD)
    for steps in range(1, 201):
        told = [step.here.time for step in SAMPLERS[name].trajectory(schedule, steps).steps]
        assert told == reference_scheduler(name, CARD, steps).timesteps.tolist()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_asks_once_about_each_level_that_its_steps_name(name: str) -> None:
    schedule, sampler = noise_schedule(CARD), SAMPLERS[name]
    steps = sampler.trajectory(schedule, 6).steps
    x = NoiseStream(0).normal(SHAPE)
    latents, asked = walk(sampler.run(x, steps, NoiseStream(1)), schedule, mixture_model(CARD))
    assert asked == [step.here for step in steps]
    assert len(asked) == sampler.evaluations(steps)
    assert latents.dtype == np.float32
    assert latents.shape == SHAPE


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_goes_on_from_the_x_that_the_driver_used(name: str) -> None:
    schedule, sampler = noise_schedule(CARD), SAMPLERS[name]
    steps = sampler.trajectory(schedule, 4).steps[:1]
    blended = NoiseStream(2).normal(SHAPE)
    clean = np.zeros(SHAPE, np.float32)

    def one_step(start: Array) -> Array:
        sampling = sampler.run(start, steps, NoiseStream(1))
        next(sampling)
        with pytest.raises(StopIteration) as end:
            sampling.send(Estimate(blended, clean, clean, lambda raw, x, level: raw))
        return np.asarray(end.value.value)

    np.testing.assert_array_equal(one_step(blended), one_step(blended + 1))


# What each comparison would say of a sampler with a term missing: it must be far outside the tolerance.


def without_last_level(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """DDIM that ends clean, as `set_alpha_to_one` would have it."""
    trajectory = SAMPLERS["DDIM"].trajectory(schedule, steps)
    last = replace(trajectory.steps[-1], there=Level(alpha=1.0, sigma=0.0, time=0.0))
    return replace(trajectory, steps=(*trajectory.steps[:-1], last))


def whole_timesteps(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """K_EULER that tells the model whole timesteps."""
    trajectory = SAMPLERS["K_EULER"].trajectory(schedule, steps)
    steps_told = (replace(step, here=replace(step.here, time=round(step.here.time))) for step in trajectory.steps)
    return replace(trajectory, steps=tuple(steps_told))


def unit_start(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """K_EULER that starts at unit variance."""
    return replace(SAMPLERS["K_EULER"].trajectory(schedule, steps), start_scale=1.0)


def other_levels(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """2M on K_EULER's evenly spaced levels."""
    return replace(SAMPLERS["K_EULER"].trajectory(schedule, steps), start_scale=1.0)


def silent(x: Array, steps: Sequence[Step], noise: NoiseStream) -> Sampling:
    """K_EULER_ANCESTRAL without its fresh noise."""

    class Silent(NoiseStream):
        def normal(self, shape: tuple[int, ...]) -> Array:
            return np.zeros(shape, np.float32)

    return SAMPLERS["K_EULER_ANCESTRAL"].run(x, steps, Silent(0))


MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM's last level": ("DDIM", {"trajectory": without_last_level}),
    "K_EULER's fractions of timesteps": ("K_EULER", {"trajectory": whole_timesteps}),
    "K_EULER's start scale": ("K_EULER", {"trajectory": unit_start}),
    "K_EULER_ANCESTRAL's fresh noise": ("K_EULER_ANCESTRAL", {"run": silent}),
    "K_EULER_ANCESTRAL's step below the level": ("K_EULER_ANCESTRAL", {"run": ddim}),
    "2M's second order": ("DPM_PLUS_PLUS_2M_KARRAS", {"run": ddim}),
    "2M's Karras levels": ("DPM_PLUS_PLUS_2M_KARRAS", {"trajectory": other_levels}),
}


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_sampler_without_one_of_its_terms_is_far_out_of_tolerance(mutant: str, steps: int) -> None:
    name, change = MUTANTS[mutant]
    mutated = replace(SAMPLERS[name], **change)
    assert difference(ours(mutated, CARD, steps, seed=7), theirs(name, CARD, steps, seed=7)) > 10 * TOLERANCE


def test_every_registered_sampler_has_a_reference() -> None:
    assert REFERENCES.keys() == SAMPLERS.keys()
