"""Picture by picture against diffusers' StableDiffusionXLPipeline, alone and with StableDiffusionXLImg2ImgPipeline as
its refiner: same seed, same latents, same pixels.

Random weights in the real topology: torch's modules behind the engine port in the quick part, their real export in
the thorough one. The default checkpoint through its committed engines.
"""

import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mediagen.v1 import image_pb2 as pb
from parity import homes, tiny_sdxl
from parity.test_pictures import (
    CLIPPED,
    LATENTS_TOLERANCE,
    MAX_TOLERANCE,
    MEAN_TOLERANCE,
    REFERENCES,
    relative,
)
from parity.tiny_sdxl import Oracle

from export.recipes import sdxl
from export.repository import export
from server.beginning import encode
from server.catalog import Engine, read_catalog
from server.denoising import denoise
from server.families.base import Run, Size
from server.plan import Plan
from server.request import plan

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINTS = ROOT / "demo" / "checkpoints"
REPOSITORY = ROOT / "model_repository"
SEED = 1234
TEXTS = {"prompt": "the red sun", "prompt_2": "the sun", "negative_prompt": "ing", "negative_prompt_2": "12"}
SIZES = (Size(256, 192), Size(192, 256))  # small for the sake of time
SUBJECTS = [
    "torch",
    pytest.param("exported", marks=pytest.mark.thorough),  # a minute of tracing
    *(["default"] if (REPOSITORY / "sdxl.json").is_file() else []),
]


@dataclass(frozen=True)
class Subject:
    """One checkpoint, in both worlds."""

    engine: Engine
    engines: Callable[[], AbstractAsyncContextManager[Run]]
    oracle: Oracle


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("sdxl")
    base, refiner, repository = folder / "base", folder / "refiner", folder / "repository"
    if request.param == "default":
        base, refiner, repository = CHECKPOINTS / "sdxl", CHECKPOINTS / "sdxl-refiner", REPOSITORY
    else:
        tiny_sdxl.write(base, refiner)
    if request.param == "torch":
        run = tiny_sdxl.torch_engines(tiny_sdxl.joined(base, refiner), repository)
        engine = read_catalog(repository)["sdxl"]
        engines = partial(nullcontext, run)
    else:
        if request.param == "exported":
            checkpoint = tiny_sdxl.joined(base, refiner)
            export(sdxl, checkpoint, sdxl.card(checkpoint, "sdxl", "", None), repository, lambda text: None)
        engine = read_catalog(repository)["sdxl"]
        engines = partial(homes.local, repository, engine, folder / "cache")
    zeros: bool = engine.card.zeros_for_no_negative  # type: ignore[attr-defined]
    return Subject(engine, engines, tiny_sdxl.oracle(base, refiner, zeros=zeros))


@pytest.fixture
async def run(subject: Subject) -> AsyncIterator[Run]:
    """Executions of the subject's engines."""
    async with subject.engines() as executions:
        yield executions


def plan_of(subject: Subject, size: Size = SIZES[0], **fields: Any) -> Plan:
    request = pb.GenerateRequest(**{"engine": "sdxl", "seed": SEED, "steps": 5, "cfg_scale": 4.0, **TEXTS, **fields})
    return dataclasses.replace(plan(request, {"sdxl": subject.engine}), size=size)


async def ours(subject: Subject, made: Plan, run: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents (c h w) and pixels (height width 3)."""
    family, card = subject.engine.family, subject.engine.card
    stages = await family.condition(made, card, run)
    latents = await denoise(made, stages, await encode(made, run), SEED, run, lambda: None)
    return latents, await family.decode(latents, card, run)


def theirs(subject: Subject, made: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The same from diffusers, as its documentation joins the two: `denoising_end`, then `denoising_start`."""
    base, refiner = subject.oracle.base, subject.oracle.refiner
    for pipeline in (base, refiner):
        pipeline.scheduler = REFERENCES[made.sampler.name](subject.oracle.scheduler)
    generator = torch.Generator().manual_seed(SEED)
    said: dict[str, Any] = {
        "prompt": made.prompt,
        "prompt_2": made.prompt_2,
        "negative_prompt": made.negative_prompt if made.negated else None,
        "negative_prompt_2": made.negative_prompt_2 if made.negated else None,
        "num_inference_steps": made.steps,
        "guidance_scale": made.guidance_scale,
        "generator": generator,
        "output_type": "latent",
    }
    share, (width, height) = made.high_noise_frac, made.size
    with torch.inference_mode():
        if share > 0:
            latents = base(**said, width=width, height=height, denoising_end=share).images
        else:  # diffusers takes 0 for absent: start noise, all of it the refiner's
            share = 1e-9
            refiner.scheduler.set_timesteps(made.steps)
            pixels_per_latent = subject.engine.card.pixels_per_latent
            shape = (1, base.unet.config.in_channels, height // pixels_per_latent, width // pixels_per_latent)
            latents = torch.randn(shape, generator=generator) * refiner.scheduler.init_noise_sigma
        if share < 1:
            latents = refiner(**said, image=latents, denoising_start=share).images
        decoded = base.vae.decode(latents / base.vae.config.scaling_factor, return_dict=False)[0]
        pixels = base.image_processor.postprocess(decoded, output_type="np")[0]
    return latents[0].numpy(), (pixels * 255).round().astype(np.uint8)


async def assert_equal(subject: Subject, made: Plan, run: Any) -> None:
    latents, pixels = await ours(subject, made, run)
    reference_latents, reference_pixels = theirs(subject, made)
    assert np.mean((reference_pixels == 0) | (reference_pixels == 255)) < CLIPPED
    assert relative(latents, reference_latents) < LATENTS_TOLERANCE
    gap = np.abs(pixels.astype(np.float32) - reference_pixels) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE


def _cases() -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked (`make parity` runs all)."""
    for sampler, steps, share, size in itertools.product(REFERENCES, (5, 20, 50), (1.0, 0.8, 0.4), SIZES):
        quick = steps == 5 and size == SIZES[0]
        marks = () if quick else (pytest.mark.thorough,)
        yield pytest.param(sampler, steps, share, size, marks=marks, id=f"{sampler}-{steps}-{share}-{size}")


@pytest.mark.parametrize(("sampler", "steps", "share", "size"), list(_cases()))
async def test_a_seed_gives_the_picture_that_diffusers_gives(
    subject: Subject, run: Any, sampler: str, steps: int, share: float, size: Size
) -> None:
    made = plan_of(subject, size, sampler=f"SAMPLER_{sampler}", steps=steps, high_noise_frac=share)
    await assert_equal(subject, made, run)


@pytest.mark.parametrize(
    "fields",
    [
        {"negative_prompt": None, "negative_prompt_2": None},
        {"negative_prompt": "", "negative_prompt_2": None},
        {"prompt_2": None, "negative_prompt_2": None},
        {"cfg_scale": 1.0},
        {"high_noise_frac": 0.0},
        {"high_noise_frac": 0.0, "negative_prompt": None, "negative_prompt_2": None},
        {"high_noise_frac": 0.5, "steps": 1},
    ],
    ids=str,
)
async def test_what_is_absent_is_to_both_what_it_is_to_diffusers(subject: Subject, run: Any, fields: Any) -> None:
    gentle = {"cfg_scale": 2.0, **fields}  # away from zeros the default checkpoint's colours clip sooner
    await assert_equal(subject, plan_of(subject, **gentle), run)
    await assert_equal(subject, plan_of(subject, sampler=pb.SAMPLER_K_EULER_ANCESTRAL, **gentle), run)


@pytest.mark.parametrize("sampler", REFERENCES)
def test_the_cut_between_the_stages_is_diffusers_for_all_steps_and_shares(subject: Subject, sampler: str) -> None:
    made = plan_of(subject, sampler=f"SAMPLER_{sampler}")
    for steps in range(1, 201):
        scheduler = REFERENCES[sampler](subject.oracle.scheduler)
        scheduler.set_timesteps(steps)
        of_steps = dataclasses.replace(made, steps=steps)
        for share in (0.05, 0.25, 0.3337, 0.5, 0.8, 0.9005, 0.999):
            cutoff = round(1000 - (share * 1000))  # as in both pipelines
            parted = dataclasses.replace(of_steps, high_noise_frac=share)
            assert len(parted.base_steps) == sum(time >= cutoff for time in scheduler.timesteps.tolist())
            assert len(parted.refiner_steps) == (scheduler.timesteps < cutoff).sum().item()


@pytest.mark.parametrize(
    "other",
    [
        {"prompt_2": "ing"},
        {"negative_prompt_2": "the red sun"},
        {"negative_prompt": None, "negative_prompt_2": None},
        {"high_noise_frac": 1.0},
        {"high_noise_frac": 0.8},
        {"high_noise_frac": 0.0},
    ],
    ids=str,
)
async def test_another_request_is_far_from_the_reference(subject: Subject, run: Any, other: Any) -> None:
    """The comparison can fail: what a request says shows by far more than the tolerance."""
    latents, _ = await ours(subject, plan_of(subject, **{"high_noise_frac": 0.4, **other}), run)
    reference, _ = theirs(subject, plan_of(subject, high_noise_frac=0.4))
    assert relative(latents, reference) > 5 * LATENTS_TOLERANCE


async def test_a_share_of_1_is_no_refiner_bit_for_bit(subject: Subject, run: Any) -> None:
    latents, pixels = await ours(subject, plan_of(subject, high_noise_frac=1.0), run)
    without_latents, without_pixels = await ours(subject, plan_of(subject, use_refiner=False), run)
    assert latents.tobytes() == without_latents.tobytes()
    assert pixels.tobytes() == without_pixels.tobytes()
