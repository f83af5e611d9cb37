"""Picture by picture against diffusers' StableDiffusionPipeline: same seed, same latents, same pixels."""

import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mediagen.v1 import image_pb2 as pb
from parity.conftest import Subject

from server.beginning import encode
from server.denoising import denoise
from server.engines.local import LocalEngines
from server.families.base import Size
from server.plan import Plan
from server.request import plan
from server.scheduler import StepScheduler

SEED = 1234
PROMPT = "a pine tree in a meadow at dawn"  # pale colours: few of its pixels clip
NEGATIVE = "a red house"
# Small for the sake of time: nothing in the path knows that they are no sizes of the API. The default checkpoint was
# trained on them too.
SIZES = (Size(384, 256), Size(256, 384))
LATENTS_TOLERANCE = 1e-3  # relative, of the norm: what is left of float32 sums in another order after 50 guided steps
MEAN_TOLERANCE, MAX_TOLERANCE = 1 / 255, 4 / 255
CLIPPED = 0.05  # a picture counts only below this share of pixels at either end: clipping hides differences

REFERENCES: dict[str, Callable[[Any], Any]] = {
    "DDIM": lambda config: diffusers.DDIMScheduler.from_config(config),
    "K_EULER": lambda config: diffusers.EulerDiscreteScheduler.from_config(config),
    "K_EULER_ANCESTRAL": lambda config: diffusers.EulerAncestralDiscreteScheduler.from_config(config),
    "DPM_PLUS_PLUS_2M_KARRAS": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(
        config, use_karras_sigmas=True
    ),
}


@pytest.fixture
async def run(subject: Subject) -> AsyncIterator[Any]:
    """Executions of the subject's engines, in this process: the contract tests prove Triton equal to it, bit by bit."""
    engines = LocalEngines(subject.repository, subject.engine.specs)
    for spec in subject.engine.specs:
        await engines.load(spec.name)
    yield StepScheduler(engines).run
    await engines.close()


def plan_of(subject: Subject, sampler: str, steps: int, size: Size, guidance_scale: float) -> Plan:
    request = pb.GenerateRequest(
        engine="sd15",
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        sampler=pb.Sampler.Value(f"SAMPLER_{sampler}"),
        steps=steps,
        cfg_scale=guidance_scale,
        seed=SEED,
    )
    return dataclasses.replace(plan(request, {"sd15": subject.engine}), size=size)


async def ours(subject: Subject, made: Plan, run: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents (c h w) and pixels (height width 3)."""
    stages = await subject.engine.family.condition(made, subject.engine.card, run)
    latents = await denoise(made, stages, await encode(made, run), SEED, run, lambda: None)
    return latents, await subject.engine.family.decode(latents, subject.engine.card, run)


def theirs(subject: Subject, made: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The same from diffusers."""
    pipeline = subject.oracle
    config = diffusers.PNDMScheduler.load_config(subject.oracle.config._name_or_path, subfolder="scheduler")
    pipeline.scheduler = REFERENCES[made.sampler.name](config)
    with torch.inference_mode():
        latents = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=made.steps,
            guidance_scale=made.guidance_scale,
            width=made.size.width,
            height=made.size.height,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        ).images
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        pixels = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    return latents[0].numpy(), (pixels * 255).round().astype(np.uint8)


def relative(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def _cases() -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked (`make parity` runs all)."""
    for sampler, steps, size, guidance_scale in itertools.product(REFERENCES, (5, 20, 50), SIZES, (2.0, 4.0)):
        longest = "DDIM" if steps == 50 else sampler  # the quick run has one of these
        quick = steps == 5 or (sampler, size, guidance_scale) == (longest, SIZES[0], 2.0)
        marks = () if quick else (pytest.mark.thorough,)
        yield pytest.param(
            sampler, steps, size, guidance_scale, marks=marks, id=f"{sampler}-{steps}-{size}-{guidance_scale}"
        )


@pytest.mark.parametrize(("sampler", "steps", "size", "guidance_scale"), list(_cases()))
async def test_a_seed_gives_the_picture_that_diffusers_gives(
    subject: Subject, run: Any, sampler: str, steps: int, size: Size, guidance_scale: float
) -> None:
    made = plan_of(subject, sampler, steps, size, guidance_scale)
    latents, pixels = await ours(subject, made, run)
    reference_latents, reference_pixels = theirs(subject, made)
    assert np.mean((reference_pixels == 0) | (reference_pixels == 255)) < CLIPPED
    assert relative(latents, reference_latents) < LATENTS_TOLERANCE
    gap = np.abs(pixels.astype(np.float32) - reference_pixels) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE


async def test_without_guidance_only_the_positive_half_runs(subject: Subject, run: Any) -> None:
    made = plan_of(subject, "DDIM", 5, SIZES[0], 1.0)
    (stage,) = await subject.engine.family.condition(made, subject.engine.card, run)
    assert all(len(tensor) == 1 for tensor in stage.networks[0].inputs.values())
    latents, _ = await ours(subject, made, run)
    assert relative(latents, theirs(subject, made)[0]) < LATENTS_TOLERANCE


@pytest.mark.parametrize("other", [name for name in REFERENCES if name != "DDIM"])
async def test_one_sampler_is_far_from_another_ones_reference(subject: Subject, run: Any, other: str) -> None:
    """The comparison can fail: at 20 steps the methods differ by far more than the tolerance."""
    latents, _ = await ours(subject, plan_of(subject, "DDIM", 20, SIZES[0], 4.0), run)
    reference, _ = theirs(subject, plan_of(subject, other, 20, SIZES[0], 4.0))
    assert relative(latents, reference) > 5 * LATENTS_TOLERANCE
