"""Drives a sampler against the denoising engine: from a seed to latents. Guidance is applied here and nowhere else.

Knows no family, no file format and no transport.
"""

from collections.abc import Callable

import numpy as np

from server.families.base import Conditioning, Run
from server.levels import Array, Level
from server.noise import NoiseStream
from server.plan import Plan
from server.samplers.base import Estimate


async def denoise(plan: Plan, conditioning: Conditioning, seed: int, run: Run, evaluated: Callable[[], None]) -> Array:
    """The latents of one picture: c h w, float32. `evaluated` is called after every evaluation of the network."""
    card, schedule = plan.engine.card, plan.engine.schedule
    noise = NoiseStream(seed)
    height, width = plan.size.height // card.pixels_per_latent, plan.size.width // card.pixels_per_latent
    trajectory = plan.sampler.trajectory(schedule, plan.steps)
    start = np.float32(trajectory.start_scale) * noise.normal((card.latent_channels, height, width))
    sampling = plan.sampler.run(start, trajectory.levels, noise)
    x, level = next(sampling)
    while True:
        raw = await _guided(plan, conditioning, x, level, run)
        evaluated()
        try:
            x, level = sampling.send(Estimate(x=x, clean=schedule.clean_from(raw, x, level), raw=raw))
        except StopIteration as finished:
            latents: Array = finished.value
            return latents


async def _guided(plan: Plan, conditioning: Conditioning, x: Array, level: Level, run: Run) -> Array:
    """The network's output after classifier-free guidance (Ho and Salimans 2022, in diffusers' parametrisation)."""
    rows = 2 if plan.guided else 1
    inputs = {
        "sample": np.broadcast_to(x, (rows, *x.shape)),
        "timestep": np.full(rows, level.time, np.float32),
        **conditioning.inputs,
    }
    prediction = (await run(conditioning.denoiser, inputs))["prediction"]  # rows c h w, float32
    if not plan.guided:
        only: Array = prediction[0]
        return only
    negative, positive = prediction
    guided: Array = negative + np.float32(plan.guidance_scale) * (positive - negative)
    return guided
