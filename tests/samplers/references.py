"""The diffusers scheduler behind each sampler, and the loop of its pipeline around exact arithmetic, not a network.

The model is the best possible denoiser of a two-mode mixture, told only x and the timestep, so that a wrong level, a
wrong timestep and a wrong step all show.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import torch

from server.levels import Array, Level, NoiseSchedule, Scheduler, noise_schedule
from server.noise import BrownianPath, NoiseStream
from server.samplers.base import Estimate, Sampler, Sampling, Step

SHAPE = (4, 8, 12)  # c h w
CARD = Scheduler(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    steps_offset=1,
    set_alpha_to_one=False,
)
LINEAR = replace(CARD, beta_schedule="linear", beta_start=0.0001, beta_end=0.02)  # Ho et al. 2020; k goes to 157
Model = Callable[[Array, float], Array]  # (x, timestep) -> raw output


@dataclass(frozen=True)
class Reference:
    """A diffusers scheduler, and what its config says besides the checkpoint's."""

    scheduler: Any
    options: dict[str, object]


KARRAS: dict[str, object] = {"use_karras_sigmas": True}
SDE: dict[str, object] = {"algorithm_type": "sde-dpmsolver++"}
REFERENCES = {
    "DDIM": Reference(diffusers.DDIMScheduler, {}),
    "PNDM": Reference(diffusers.PNDMScheduler, {}),
    "LMS": Reference(diffusers.LMSDiscreteScheduler, {}),
    "KLMS": Reference(diffusers.LMSDiscreteScheduler, KARRAS),
    "DDPM": Reference(diffusers.DDPMScheduler, {}),
    "HEUN": Reference(diffusers.HeunDiscreteScheduler, {}),
    "K_HEUN": Reference(diffusers.HeunDiscreteScheduler, KARRAS),
    "K_EULER": Reference(diffusers.EulerDiscreteScheduler, {}),
    "K_EULER_ANCESTRAL": Reference(diffusers.EulerAncestralDiscreteScheduler, {}),
    "DPM_SOLVER_MULTISTEP": Reference(diffusers.DPMSolverMultistepScheduler, {}),
    "DPM_PLUS_PLUS_2M_KARRAS": Reference(diffusers.DPMSolverMultistepScheduler, KARRAS),
    "DPM_PLUS_PLUS_2M_SDE": Reference(diffusers.DPMSolverMultistepScheduler, SDE),
    "DPM_PLUS_PLUS_2M_SDE_KARRAS": Reference(diffusers.DPMSolverMultistepScheduler, {**SDE, **KARRAS}),
    "DPM_SINGLE": Reference(diffusers.DPMSolverSinglestepScheduler, {}),
    "DPM_2": Reference(diffusers.KDPM2DiscreteScheduler, {}),
    "DPM_2_KARRAS": Reference(diffusers.KDPM2DiscreteScheduler, KARRAS),
    "DPM_2_ANCESTRAL": Reference(diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "DPM_2_ANCESTRAL_KARRAS": Reference(diffusers.KDPM2AncestralDiscreteScheduler, KARRAS),
    "DPM_PLUS_PLUS_SDE_KARRAS": Reference(diffusers.DPMSolverSDEScheduler, KARRAS),
    "UNI_PC": Reference(diffusers.UniPCMultistepScheduler, {}),
    "LCM": Reference(diffusers.LCMScheduler, {}),
}
BROWNIAN = "DPM_PLUS_PLUS_SDE_KARRAS"


def mixture_model(card: Scheduler) -> Model:
    """E[clean | x] when every value of clean is -1.2 or 0.8, each give or take 0.4; as eps or v."""
    means, spread, shares = np.array([-1.2, 0.8]), 0.4, np.array([0.35, 0.65])
    alphas_cumprod = noise_schedule(card).alphas_cumprod.astype(np.float64)

    def model(x: Array, timestep: float) -> Array:
        alpha_cumprod = np.interp(timestep, np.arange(len(alphas_cumprod)), alphas_cumprod)
        alpha, sigma = np.sqrt(alpha_cumprod), np.sqrt(1 - alpha_cumprod)
        variance = (alpha * spread) ** 2 + sigma**2
        offset = x.astype(np.float64)[..., None] - alpha * means  # c h w mode
        logits = -(offset**2) / (2 * variance)
        odds = shares * np.exp(logits - logits.max(axis=-1, keepdims=True))  # no x is so far off that both are 0
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


def config(card: Scheduler) -> Any:
    """As it is stored beside a checkpoint: that of SD 1.5's own PNDM scheduler."""
    own = {"skip_prk_steps": True, "clip_sample": False, "trained_betas": None}
    stored = {field: value for field, value in (vars(card) | own).items() if field != "timestep_spacing"}
    if card.timestep_spacing is not None:
        stored["timestep_spacing"] = card.timestep_spacing
    return diffusers.PNDMScheduler.from_config(stored).config


def reference_scheduler(name: str, stored: Any) -> Any:
    """As a pipeline gets it: from the config of the checkpoint's own."""
    reference = REFERENCES[name]
    return reference.scheduler.from_config(stored, **reference.options)


def scheduler_of(name: str, card: Scheduler) -> Any:
    """The same, for a card. Made once: some take half a second."""
    return copy.deepcopy(_scheduler_of(name, card))


@functools.cache
def _scheduler_of(name: str, card: Scheduler) -> Any:
    return reference_scheduler(name, config(card))


def inject(path: BrownianPath, steps: Sequence[Step], scheduler: Any) -> None:
    """diffusers' Brownian noise is our path: asked at its float32 sigmas, answered at the levels they round."""
    ks = np.array([level.k for step in steps for level in (step.here, *step.via, step.there)])

    def noise(sigma: Any, sigma_next: Any) -> torch.Tensor:
        begin, end = (float(ks[np.abs(ks - float(each)).argmin()]) for each in (sigma, sigma_next))
        return torch.from_numpy(path.between(begin, end))[None]

    scheduler.noise_sampler = noise


def loop(scheduler: Any, timesteps: Any, latents: Any, model: Model, generator: torch.Generator) -> Array:
    """The denoising of diffusers' pipelines."""
    takes = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in timesteps:
        x = scheduler.scale_model_input(latents, t)
        raw = torch.from_numpy(model(x[0].numpy(), float(t)))[None]
        latents = scheduler.step(raw, t, latents, **takes).prev_sample
    return np.asarray(latents[0].numpy())


def theirs(name: str, sampler: Sampler, card: Scheduler, steps: int, seed: int) -> Array:
    """What diffusers' StableDiffusionPipeline makes of a seed."""
    scheduler = scheduler_of(name, card)
    scheduler.set_timesteps(steps)
    if name == BROWNIAN:
        inject(NoiseStream(seed).brownian(SHAPE), sampler.trajectory(noise_schedule(card), steps).steps, scheduler)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, *SHAPE), generator=generator) * scheduler.init_noise_sigma
    return loop(scheduler, scheduler.timesteps, latents, mixture_model(card), generator)


def difference(a: Array, b: Array) -> float:
    """Relative, of the norm."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
