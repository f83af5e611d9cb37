"""Drives a sampler against the denoising engines: from a seed to latents. Guidance is applied here and nowhere else.

Knows no family, no file format and no transport.
"""

from collections.abc import Callable, Sequence

import numpy as np

from server.beginning import Encoded, View, begin
from server.families.base import Network, Run, Stage
from server.levels import CLEAN, Array, Level
from server.noise import NoiseStream
from server.plan import Plan
from server.samplers.base import Estimate


async def denoise(
    plan: Plan, stages: Sequence[Stage], encoded: Encoded, seed: int, run: Run, evaluated: Callable[[], None]
) -> Array:
    """The latents of one picture: c h w, float32. `evaluated` is called after every evaluation of a network.

    Each stage walks its part of the steps as a run of its own: its sampler knows nothing of the steps before,
    which were another network's. The stream of noise goes on.
    """
    noise = NoiseStream(seed)
    beginning = begin(plan, encoded, noise)
    x = beginning.x
    for stage in stages:
        view = beginning.telling if stage.told else beginning.blending
        if stage is not stages[0]:
            x = view.known(x, stage.steps[0].here)
        x = await _walk(plan, stage, x, view, noise, run, evaluated)
    return view.known(x, CLEAN)  # not every sampler's last level is


async def _walk(
    plan: Plan,
    stage: Stage,
    x: Array,
    view: View,
    noise: NoiseStream,
    run: Run,
    evaluated: Callable[[], None],
) -> Array:
    """x (c h w, float32, about unit variance) through the steps of a stage. What is known of the picture is put in
    before every evaluation but the first, which begins with it."""
    sampling = plan.sampler.run(x, stage.steps, noise)
    x, level = next(sampling)
    networks = (network for network in stage.networks for _ in range(network.evaluations))
    while True:
        raw = await _guided(plan, next(networks), x, view.told, level, run)
        evaluated()
        clean = plan.engine.schedule.clean_from(raw, x, level)
        try:
            x, level = sampling.send(Estimate(x=x, clean=clean, raw=raw, clean_from=plan.engine.schedule.clean_from))
        except StopIteration as finished:
            latents: Array = finished.value
            return latents
        x = view.known(x, level)


async def _guided(plan: Plan, network: Network, x: Array, told: Array, level: Level, run: Run) -> Array:
    """The network's output after classifier-free guidance (Ho and Salimans 2022, in diffusers' parametrisation)."""
    rows = 2 if plan.guided else 1
    sample = np.concatenate((x, told))
    inputs = {
        "sample": np.broadcast_to(sample, (rows, *sample.shape)),
        "timestep": np.full(rows, level.time, np.float32),
        **network.inputs,
    }
    prediction = (await run(network.denoiser, inputs))["prediction"]  # rows c h w, float32
    if not plan.guided:
        only: Array = prediction[0]
        return only
    negative, positive = prediction
    guided: Array = negative + np.float32(plan.guidance_scale) * (positive - negative)
    return guided
