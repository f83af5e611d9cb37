"""Picture by picture against diffusers' StableDiffusion3Pipeline, with T5 and without: same seed, same latents, same
pixels. Random weights in the real topology, through the real export; the default checkpoint too."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from mediagen.v1 import image_pb2 as pb
from parity import tiny_sd3

from export.checkpoint import open_checkpoint
from export.recipes import sd3
from export.repository import export
from server.beginning import encode
from server.catalog import Engine, read_catalog
from server.denoising import denoise
from server.engines.local import LocalEngines
from server.families.base import Size
from server.plan import Plan
from server.request import plan
from server.scheduler import StepScheduler

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT = ROOT / "demo" / "checkpoints" / "sd3"
REPOSITORY = ROOT / "model_repository"
SEED = 1234
PROMPT = "a pine tree in a meadow at dawn"
NEGATIVE = "a red house"
SIZES = (Size(384, 256), Size(256, 384))  # small for the sake of time
LATENTS_TOLERANCE = 1e-3  # relative, of the norm
MEAN_TOLERANCE, MAX_TOLERANCE = 1 / 255, 4 / 255
CLIPPED = 0.05  # a picture counts only below this share of pixels at either end: clipping hides differences
SUBJECTS = ["t5", "no_t5", *(["default"] if (REPOSITORY / "sd3.json").is_file() else [])]


@dataclass(frozen=True)
class Subject:
    """One checkpoint, in both worlds."""

    engine: Engine
    repository: Path
    oracle: StableDiffusion3Pipeline


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint with T5, and its model repository."""
    folder = tmp_path_factory.mktemp("sd3")
    tiny_sd3.write(folder / "checkpoint", t5=True)
    checkpoint = open_checkpoint(str(folder / "checkpoint"), None, tuple(sd3.COMPONENTS))
    card = sd3.card(checkpoint, "sd3", "a random one", None)
    export(sd3, checkpoint, card, folder / "repository", lambda text: None)
    return folder / "checkpoint", folder / "repository"


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(
    request: pytest.FixtureRequest, exported: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """With T5 as exported; without it nothing but the engine and the card's word for it is gone."""
    checkpoint, repository = exported
    left_out: dict[str, Any] = {}
    if request.param != "t5":
        left_out = {"text_encoder_3": None, "tokenizer_3": None}
    if request.param == "no_t5":
        repository = tmp_path_factory.mktemp("no_t5") / "repository"
        shutil.copytree(exported[1], repository, ignore=shutil.ignore_patterns("sd3_text_encoder_3"))
        card = json.loads((repository / "sd3.json").read_text())
        (repository / "sd3.json").write_text(json.dumps({**card, "t5": False}))
    if request.param == "default":
        checkpoint, repository = CHECKPOINT, REPOSITORY
    oracle = StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32, **left_out)
    oracle.set_progress_bar_config(disable=True)
    return Subject(read_catalog(repository)["sd3"], repository, oracle)


@pytest.fixture
async def run(subject: Subject) -> AsyncIterator[Any]:
    """Executions of the subject's engines, in this process: the contract tests prove Triton equal to it, bit by bit."""
    engines = LocalEngines(subject.repository, subject.engine.specs)
    for spec in subject.engine.specs:
        await engines.load(spec.name)
    yield StepScheduler(engines).run
    await engines.close()


def plan_of(subject: Subject, steps: int, size: Size, guidance_scale: float, negative: str | None = NEGATIVE) -> Plan:
    request = pb.GenerateRequest(
        engine="sd3", prompt=PROMPT, negative_prompt=negative, steps=steps, cfg_scale=guidance_scale, seed=SEED
    )
    return dataclasses.replace(plan(request, {"sd3": subject.engine}), size=size)


async def ours(subject: Subject, made: Plan, run: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents (c h w) and pixels (height width 3)."""
    family, card = subject.engine.family, subject.engine.card
    stages = await family.condition(made, card, run)
    latents = await denoise(made, stages, await encode(made, run), SEED, run, lambda: None)
    return latents, await family.decode(latents, card, run)


def theirs(
    subject: Subject, made: Plan, negative: str | None = NEGATIVE, shift: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """The same from diffusers."""
    pipeline = subject.oracle
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=shift)
    with torch.inference_mode():
        latents = pipeline(
            PROMPT,
            negative_prompt=negative,
            num_inference_steps=made.steps,
            guidance_scale=made.guidance_scale,
            width=made.size.width,
            height=made.size.height,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        ).images
        vae = pipeline.vae
        decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        pixels = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    return latents[0].numpy(), (pixels * 255).round().astype(np.uint8)


def relative(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def _cases() -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked (`make parity` runs all)."""
    for steps, size, guidance_scale in itertools.product((5, 28, 50), SIZES, (1.5, 2.0)):
        quick = (steps, size, guidance_scale) in ((5, SIZES[1], 2.0), (28, SIZES[0], 1.5))
        marks = () if quick else (pytest.mark.thorough,)
        yield pytest.param(steps, size, guidance_scale, marks=marks, id=f"{steps}-{size}-{guidance_scale}")


@pytest.mark.parametrize(("steps", "size", "guidance_scale"), list(_cases()))
async def test_a_seed_gives_the_picture_that_diffusers_gives(
    subject: Subject, run: Any, steps: int, size: Size, guidance_scale: float
) -> None:
    made = plan_of(subject, steps, size, guidance_scale)
    latents, pixels = await ours(subject, made, run)
    reference_latents, reference_pixels = theirs(subject, made)
    assert np.mean((reference_pixels == 0) | (reference_pixels == 255)) < CLIPPED
    assert relative(latents, reference_latents) < LATENTS_TOLERANCE
    gap = np.abs(pixels.astype(np.float32) - reference_pixels) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE


async def test_no_negative_prompt_means_what_it_means_in_diffusers(subject: Subject, run: Any) -> None:
    latents, _ = await ours(subject, plan_of(subject, 5, SIZES[0], 4.0, negative=None), run)
    made = plan_of(subject, 5, SIZES[0], 4.0)
    assert relative(latents, theirs(subject, made, negative=None)[0]) < LATENTS_TOLERANCE
    assert relative(latents, theirs(subject, made, negative=NEGATIVE)[0]) > 5 * LATENTS_TOLERANCE


async def test_without_guidance_only_the_positive_half_runs(subject: Subject, run: Any) -> None:
    made = plan_of(subject, 5, SIZES[0], 1.0)
    (stage,) = await subject.engine.family.condition(made, subject.engine.card, run)
    assert all(len(tensor) == 1 for tensor in stage.networks[0].inputs.values())
    latents, _ = await ours(subject, made, run)
    assert relative(latents, theirs(subject, made)[0]) < LATENTS_TOLERANCE


async def test_another_shift_is_far_away(subject: Subject, run: Any) -> None:
    """The comparison can fail: where the steps lie shows by far more than the tolerance."""
    made = plan_of(subject, 5, SIZES[0], 4.0)
    latents, _ = await ours(subject, made, run)
    assert relative(latents, theirs(subject, made, shift=2.5)[0]) > 5 * LATENTS_TOLERANCE
