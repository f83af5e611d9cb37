"""Drives a sampler against the denoising engines: from a seed to latents. Guidance is applied here and nowhere else.

Knows no family, no file format and no transport.
"""

from collections.abc import Callable, Sequence

import numpy as np

from server.families.base import Run, Stage
from server.levels import Array, Level
from server.noise import NoiseStream
from server.plan import Plan
from server.samplers.base import Estimate, Step


async def denoise(plan: Plan, stages: Sequence[Stage], seed: int, run: Run, evaluated: Callable[[], None]) -> Array:
    """The latents of one picture: c h w, float32. `evaluated` is called after every evaluation of a network.

    Each stage walks its part of the steps as a run of its own: its sampler knows nothing of the steps before,
    which were another network's. The stream of noise goes on.
    """
    card = plan.engine.card
    noise = NoiseStream(seed)
    height, width = plan.size.height // card.pixels_per_latent, plan.size.width // card.pixels_per_latent
    steps, begin = plan.trajectory.steps, 0
    x: Array = np.float32(plan.trajectory.start_scale) * noise.normal((card.latent_channels, height, width))
    for stage in stages:
        end = plan.steps_before(stage.until)
        x = await _walk(plan, stage, x, steps[begin:end], noise, run, evaluated)
        begin = end
    return x


async def _walk(
    plan: Plan,
    stage: Stage,
    x: Array,
    steps: Sequence[Step],
    noise: NoiseStream,
    run: Run,
    evaluated: Callable[[], None],
) -> Array:
    """x (c h w, float32, about unit variance) through its steps, of which there is at least one."""
    sampling = plan.sampler.run(x, steps, noise)
    x, level = next(sampling)
    while True:
        raw = await _guided(plan, stage, x, level, run)
        evaluated()
        clean = plan.engine.schedule.clean_from(raw, x, level)
        try:
            x, level = sampling.send(Estimate(x=x, clean=clean, raw=raw))
        except StopIteration as finished:
            latents: Array = finished.value
            return latents


async def _guided(plan: Plan, stage: Stage, x: Array, level: Level, run: Run) -> Array:
    """The network's output after classifier-free guidance (Ho and Salimans 2022, in diffusers' parametrisation)."""
    rows = 2 if plan.guided else 1
    inputs = {
        "sample": np.broadcast_to(x, (rows, *x.shape)),
        "timestep": np.full(rows, level.time, np.float32),
        **stage.inputs,
    }
    prediction = (await run(stage.denoiser, inputs))["prediction"]  # rows c h w, float32
    if not plan.guided:
        only: Array = prediction[0]
        return only
    negative, positive = prediction
    guided: Array = negative + np.float32(plan.guidance_scale) * (positive - negative)
    return guided
