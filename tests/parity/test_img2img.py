"""Pictures in, against diffusers' img2img and inpaint pipelines: same seed, same latents, same pixels. Inpainting is
compared before the known area is pasted in.

Random weights in the real topology, the inpainting networks of nine channels too: torch's modules behind the engine
port in the quick part, their real export in the thorough one.
"""

import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from mediagen.v1 import image_pb2 as pb
from parity import homes, tiny_sd3
from parity.tiny_sdxl import randomise
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from export.checkpoint import Checkpoint, open_checkpoint
from export.recipes import sd3, sd15, sdxl
from export.repository import Recipe, export
from export.tokenizer import write_tokenizer
from export.weights import load_component
from server.beginning import encode
from server.canvas import FromPicture, Inpainting, from_picture, inpainting, whole
from server.catalog import Engine, read_catalog
from server.denoising import denoise
from server.engines.port import Array, Spec, Tensors
from server.families.base import Run, Size
from server.plan import Plan
from server.request import plan

SEED = 1234
SIZE = Size(256, 192)  # small for the sake of time
STEPS = 10
STRENGTHS = (0.3, 0.8, 1.0)
LATENTS_TOLERANCE = 1e-3  # relative, of the norm
MEAN_TOLERANCE, MAX_TOLERANCE = 1 / 255, 4 / 255
CLIPPED = 0.05  # a picture counts only below this share of pixels at either end: clipping hides differences
SAMPLERS: Mapping[str, Any] = {
    "DDIM": diffusers.DDIMScheduler,
    "K_EULER": diffusers.EulerDiscreteScheduler,
    "K_EULER_ANCESTRAL": diffusers.EulerAncestralDiscreteScheduler,
    "HEUN": diffusers.HeunDiscreteScheduler,  # two evaluations a step: the known area goes in before each
    "DPM_2_ANCESTRAL": diffusers.KDPM2AncestralDiscreteScheduler,  # the same, at a level between, with fresh noise
    "DPM_SOLVER_MULTISTEP": diffusers.DPMSolverMultistepScheduler,  # goes by what it found before
    "UNI_PC": diffusers.UniPCMultistepScheduler,  # corrects the step behind it from the x that the driver used
    "LCM": diffusers.LCMScheduler,
}


@dataclass(frozen=True)
class Kind:
    """A shape of checkpoint: how it is written, what exports it, and which pipelines of diffusers know it."""

    recipe: Recipe
    write: Callable[[Path], None]
    parts: Mapping[str, type]
    tokenizers: tuple[str, ...]
    img2img: type
    inpaint: type | None
    options: Mapping[str, Any]  # of the pipelines
    samplers: tuple[str, ...]


def _write_sd15(folder: Path, in_channels: int) -> None:
    checkpoints.write_sd15(folder, in_channels)
    checkpoints.change_json(folder / "vae" / "config.json", shift_factor=None)  # which no pipeline of diffusers applies
    checkpoints.change_json(folder / "unet" / "config.json", sample_size=64)  # another one is warned of
    checkpoints.change_json(folder / "scheduler" / "scheduler_config.json", clip_sample=False, skip_prk_steps=True)


def _write_sdxl(folder: Path, in_channels: int) -> None:
    checkpoints.write_sdxl(folder, {**checkpoints.SDXL_UNET, "in_channels": in_channels})


SD15_PARTS = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
SDXL_PARTS = {**SD15_PARTS, "text_encoder_2": CLIPTextModelWithProjection}
SD3_PARTS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
}
SD15 = Kind(
    recipe=sd15,
    write=partial(_write_sd15, in_channels=4),
    parts=SD15_PARTS,
    tokenizers=("tokenizer",),
    img2img=diffusers.StableDiffusionImg2ImgPipeline,
    inpaint=diffusers.StableDiffusionInpaintPipeline,
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    samplers=tuple(SAMPLERS),
)
SDXL = Kind(
    recipe=sdxl,
    write=partial(_write_sdxl, in_channels=4),
    parts=SDXL_PARTS,
    tokenizers=("tokenizer", "tokenizer_2"),
    img2img=diffusers.StableDiffusionXLImg2ImgPipeline,
    inpaint=diffusers.StableDiffusionXLInpaintPipeline,
    options={"add_watermarker": False},
    samplers=tuple(SAMPLERS),
)
SD3 = Kind(
    recipe=sd3,
    write=partial(tiny_sd3.write, t5=False),
    parts=SD3_PARTS,
    tokenizers=("tokenizer", "tokenizer_2"),
    img2img=diffusers.StableDiffusion3Img2ImgPipeline,
    inpaint=None,  # the API has none for it
    options={"text_encoder_3": None, "tokenizer_3": None},
    samplers=("FLOW_MATCH_EULER",),
)
KINDS = {
    "sd15": SD15,
    "sd15-inpainting": dataclasses.replace(SD15, write=partial(_write_sd15, in_channels=9)),
    "sdxl": SDXL,
    "sdxl-inpainting": dataclasses.replace(SDXL, write=partial(_write_sdxl, in_channels=9)),
    "sd3": SD3,
}


@dataclass(frozen=True)
class Subject:
    """One checkpoint, in both worlds."""

    kind: Kind
    engine: Engine
    engines: Callable[[], AbstractAsyncContextManager[Run]]
    components: Mapping[str, Any]  # of diffusers' pipelines, in float32, with the weights as stored
    scheduler: Mapping[str, Any]  # the checkpoint's own configuration

    def pipeline(self, of: type, sampler: str) -> Any:
        """diffusers'."""
        scheduler = SAMPLERS.get(sampler, diffusers.FlowMatchEulerDiscreteScheduler).from_config(self.scheduler)
        made = of(**self.components, **self.kind.options, scheduler=scheduler)
        made.set_progress_bar_config(disable=True)
        return made


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name, exported = request.param
    kind = KINDS[name]
    folder, repository = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("repository")
    kind.write(folder)
    torch.manual_seed(11)
    for part, module_class in kind.parts.items():
        module = module_class.from_pretrained(folder / part, dtype=torch.float32)
        randomise(module)
        module.half().save_pretrained(folder / part)
    checkpoint = open_checkpoint(str(folder), None, tuple(kind.recipe.COMPONENTS))
    if exported:
        export(kind.recipe, checkpoint, kind.recipe.card(checkpoint, "tiny", "", None), repository, lambda text: None)
        engine = read_catalog(repository)["tiny"]
        engines = partial(homes.local, repository, engine, folder / "cache")
    else:
        run = _torch_engines(kind.recipe, checkpoint, repository)
        engine, engines = read_catalog(repository)["tiny"], partial(nullcontext, run)
    components: dict[str, Any] = {
        part: module_class.from_pretrained(folder / part, dtype=torch.float32).eval()
        for part, module_class in kind.parts.items()
    }
    components |= {part: CLIPTokenizer.from_pretrained(folder / part) for part in kind.tokenizers}
    return Subject(kind, engine, engines, components, checkpoint.json("scheduler/scheduler_config.json"))


def _torch_engines(recipe: Recipe, checkpoint: Checkpoint, repository: Path) -> Run:
    """What the exporter would trace, run by torch; the repository gets the card and the tokenizers."""
    card = recipe.card(checkpoint, "tiny", "", None)
    modules: dict[str, torch.nn.Module] = {}
    for engine in recipe.recipes(checkpoint, card):
        component = load_component(recipe.COMPONENTS[engine.component], checkpoint, engine.component)
        modules[engine.spec.name] = engine.wrap(component).eval()
        if engine.tokenizer is not None:
            path = repository / engine.spec.name / "tokenizer.json"
            path.parent.mkdir(parents=True)
            write_tokenizer(engine.tokenizer, checkpoint, engine.component, 77, path)
    (repository / "tiny.json").write_text(json.dumps(asdict(card)))

    async def run(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        spec.check(inputs)
        with torch.inference_mode():
            found = modules[spec.name](*(torch.from_numpy(inputs[port.name].copy()) for port in spec.inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        return {port.name: output.numpy() for port, output in zip(spec.outputs, outputs, strict=True)}

    return run


@pytest.fixture
async def run(subject: Subject) -> AsyncIterator[Run]:
    """Executions of the subject's engines."""
    async with subject.engines() as executions:
        yield executions


def picture() -> np.ndarray:
    """height width 3, uint8, of the size that the model sees."""
    y, x = np.mgrid[0 : 1 : SIZE.height * 1j, 0 : 1 : SIZE.width * 1j]
    slopes = np.stack((200 * x + 20, 180 * y + 30, 90 + 80 * np.sin(9 * x * y)), axis=2)
    return (slopes + np.random.RandomState(0).normal(0, 12, slopes.shape)).round().clip(0, 255).astype(np.uint8)


def mask() -> np.ndarray:
    """height width, uint8; its edges lie between latents."""
    painted = np.zeros((SIZE.height, SIZE.width), np.uint8)
    painted[37:151, 60:203] = 255
    return painted


def masked() -> Inpainting:
    return inpainting(picture(), mask(), SIZE, whole(SIZE))


def plan_of(subject: Subject, sampler: str, strength: float, start: FromPicture | Inpainting, **fields: Any) -> Plan:
    said = {"prompt": "the red sun", "negative_prompt": "ing", "steps": STEPS, "cfg_scale": 3.0, "seed": SEED, **fields}
    request = pb.GenerateRequest(engine="tiny", **said)
    if sampler in SAMPLERS:
        request.sampler = pb.Sampler.Value(f"SAMPLER_{sampler}")
    made = plan(request, {"tiny": subject.engine})
    return dataclasses.replace(made, size=SIZE, start=start, strength=strength)


async def ours(subject: Subject, made: Plan, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Latents (c h w) and pixels (height width 3)."""
    family, card = subject.engine.family, subject.engine.card
    stages = await family.condition(made, card, run)
    latents = await denoise(made, stages, await encode(made, run), SEED, run, lambda: None)
    return latents, await family.decode(latents, card, run)


def theirs(subject: Subject, made: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The same from diffusers."""
    said: dict[str, Any] = {
        "prompt": made.prompt,
        "negative_prompt": made.negative_prompt,
        "image": Image.fromarray(made.start.pixels),
        "strength": made.strength,
        "num_inference_steps": made.steps,
        "guidance_scale": made.guidance_scale,
        "generator": torch.Generator().manual_seed(SEED),
        "output_type": "latent",
    }
    match made.start:
        case Inpainting(mask=painted):
            pipeline = subject.pipeline(subject.kind.inpaint, made.sampler.name)
            said |= {"mask_image": Image.fromarray(painted.astype(np.uint8) * 255)}
            said |= {"width": SIZE.width, "height": SIZE.height}
        case _:
            pipeline = subject.pipeline(subject.kind.img2img, made.sampler.name)
            if subject.kind is SD3:  # the others read it off the picture
                said |= {"width": SIZE.width, "height": SIZE.height}
    with torch.inference_mode():
        latents = pipeline(**said).images
        vae = pipeline.vae
        shift = vae.config.shift_factor or 0
        decoded = vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0]
        pixels = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
    return latents[0].numpy(), (pixels * 255).round().astype(np.uint8)


def relative(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


async def assert_equal(subject: Subject, made: Plan, run: Run) -> None:
    latents, pixels = await ours(subject, made, run)
    reference_latents, reference_pixels = theirs(subject, made)
    assert np.mean((reference_pixels == 0) | (reference_pixels == 255)) < CLIPPED
    assert relative(latents, reference_latents) < LATENTS_TOLERANCE
    gap = np.abs(pixels.astype(np.float32) - reference_pixels) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE


def _cases(*kinds: str) -> Iterator[Any]:
    """All of them; those that a quick run leaves out are marked (`make parity` runs all). The export takes minutes."""
    for kind, exported in itertools.product(kinds, (False, True)):
        samplers = KINDS[kind].samplers
        for sampler, strength in itertools.product(samplers, STRENGTHS):
            place = samplers.index(sampler)
            turn = len(samplers) == 1 or strength == STRENGTHS[place % len(STRENGTHS)]
            quick = not exported and turn and (place < len(STRENGTHS) or kind == "sd15")
            marks = () if quick else (pytest.mark.thorough,)
            name = f"{kind}-{'exported' if exported else 'torch'}-{sampler}-{strength}"
            yield pytest.param((kind, exported), sampler, strength, marks=marks, id=name)


@pytest.mark.parametrize(
    ("subject", "sampler", "strength"), list(_cases("sd15", "sdxl", "sd3")), indirect=["subject"], scope="module"
)
async def test_image_to_image_gives_the_picture_that_diffusers_gives(
    subject: Subject, run: Run, sampler: str, strength: float
) -> None:
    await assert_equal(subject, plan_of(subject, sampler, strength, from_picture(picture(), SIZE)), run)


@pytest.mark.parametrize(
    ("subject", "sampler", "strength"),
    list(_cases("sd15", "sd15-inpainting", "sdxl", "sdxl-inpainting")),
    indirect=["subject"],
    scope="module",
)
async def test_inpainting_gives_the_picture_that_diffusers_gives(
    subject: Subject, run: Run, sampler: str, strength: float
) -> None:
    await assert_equal(subject, plan_of(subject, sampler, strength, masked()), run)


@pytest.mark.parametrize("subject", [("sd15", False), ("sd15-inpainting", False)], indirect=True, ids=str)
async def test_another_picture_mask_or_strength_is_far_from_the_reference(subject: Subject, run: Run) -> None:
    """The comparison can fail: what is given shows by far more than the tolerance."""
    reference, _ = theirs(subject, plan_of(subject, "DDIM", 0.8, masked()))
    moved = inpainting(picture(), np.roll(mask(), 16, axis=1), SIZE, whole(SIZE))
    turned = inpainting(picture()[::-1], mask(), SIZE, whole(SIZE))
    for start, strength in ((moved, 0.8), (turned, 0.8), (masked(), 0.9)):
        latents, _ = await ours(subject, plan_of(subject, "DDIM", strength, start), run)
        assert relative(latents, reference) > 5 * LATENTS_TOLERANCE
