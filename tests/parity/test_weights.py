"""LoRAs, checkpoints and autoencoders of a request's own against diffusers with the same files: same seed, same
latents, same pixels.

All of the service's own path but Triton: files in the asset library, a request by their names, variants written by the
builder's code, loaded and run in this process. Random weights over the default checkpoints; the demo's where they are.

Variants are stored in half precision. So the oracle's merged weights are rounded to it too, once, and computed in
float32; what the rounding alone does to a picture has a test of its own.
"""

import copy
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import pytest_asyncio
import torch
from builder.files import REPOSITORY, ROOT, saved, shapes, some_random
from builder.test_lora import components, kohya, peft
from builder.test_single_file import own, single_file
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from mediagen.v1 import image_pb2 as pb
from parity.test_pictures import CLIPPED, LATENTS_TOLERANCE, MAX_TOLERANCE, MEAN_TOLERANCE, relative

from server.adapters.weights import Variant
from server.assets.deployment import bring_in
from server.assets.library import Library
from server.beginning import encode
from server.builder.client import Built
from server.builder.inspection import inspect, kind
from server.builder.variant import Source, build
from server.catalog import Catalog
from server.denoising import denoise
from server.engines.local import LocalEngines
from server.engines.memory import estimate
from server.engines.on_demand import OnDemandEngines
from server.engines.port import Array
from server.families.base import Size
from server.plan import Plan
from server.request import plan
from server.scheduler import StepScheduler
from server.variants import Variants

pytestmark = pytest.mark.asyncio(loop_scope="module")  # networks are loaded once

DEMO = REPOSITORY / "assets"
SEED, STEPS, GUIDANCE = 1234, 4, 2.0
PROMPT, NEGATIVE = "a pine tree in a meadow at dawn", "a red house"
SIZES = {"sd15": Size(256, 256), "sdxl": Size(256, 192)}  # small for the sake of time
ROUNDING = 3 * LATENTS_TOLERANCE  # what half precision of merged weights may do to latents, relative
FAR = 20 * LATENTS_TOLERANCE

Picture = tuple[np.ndarray, np.ndarray]  # latents (c h w), float32; pixels (height width 3), uint8
File = Mapping[str, Array]


MADE: Mapping[str, Callable[[], File]] = {
    "one": lambda: peft("sd15", 7),
    "one-kohya": lambda: kohya("sd15", 7),  # its alpha is half of its rank
    "two": lambda: peft("sd15", 301),
    "large": lambda: peft("sdxl", 7),
    "drawn": lambda: other(single_file("sd15"), 3),
    "seen": lambda: other(own("sd15", "vae"), 4),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies in a deployment's folder of assets."""
    folder = tmp_path_factory.mktemp("files")
    for name, tensors in MADE.items():
        saved(tensors(), folder / f"{name}.safetensors")
    for path in DEMO.glob("*.safetensors"):
        shutil.copy(path, folder)
    return folder


def other(tensors: File, seed: int) -> File:
    """The same file with somewhat other numbers."""
    return {
        name: (tensor * (1 + some_random(seed, *tensor.shape, scale=0.03))).astype(tensor.dtype)
        if tensor.ndim > 1 and tensor.dtype == np.float16
        else tensor
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class Gateway:
    """What a request goes through."""

    catalog: Catalog
    library: Library
    variants: Variants
    drawn: dict[str, Picture] = field(default_factory=dict)  # by what was asked

    def plan(self, engine: str, **fields: Any) -> Plan:
        said = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": STEPS, "cfg_scale": GUIDANCE, "seed": SEED}
        request = pb.GenerateRequest(**{"engine": engine, "sampler": pb.SAMPLER_DDIM, **said, **fields})
        if engine == "sdxl":
            request.use_refiner = False
        return dataclasses.replace(plan(request, self.catalog, self.library.shelf("default")), size=SIZES[engine])

    async def draw(self, engine: str, **fields: Any) -> Picture:
        key = f"{engine} {fields}"
        if key not in self.drawn:
            self.drawn[key] = await self._draw(engine, **fields)
        return self.drawn[key]

    async def _draw(self, engine: str, **fields: Any) -> Picture:
        made = self.plan(engine, **fields)
        family, card = self.catalog[engine].family, self.catalog[engine].card
        async with self.variants.held(made.variants) as held:
            assert {one.graph for one in held.made} == set(made.variants)
            stages = await family.condition(made, card, held.run)
            latents = await denoise(made, stages, await encode(made, held.run), SEED, held.run, lambda: None)
            return latents, await family.decode(latents, card, held.run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the library, of variants, of compiled networks."""
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def library(files: Path, folder: Path) -> Any:
    """With all files in it, looked at."""
    made = Library(folder / "assets", lambda path, type: inspect(path, type, shapes()), 2**30)
    bring_in(made, files, kind, "")
    yield made
    made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(catalog: Catalog, library: Library, folder: Path) -> AsyncIterator[Gateway]:
    """Engines are loaded by their first use."""
    specs = {spec.name: spec for engine in catalog.values() for spec in engine.specs}
    local = LocalEngines(REPOSITORY, specs.values(), folder / "cache")
    home = OnDemandEngines(local, {name: estimate(REPOSITORY, name) for name in specs}, 2**40)
    variants = Variants(
        home, partial(ensure, library, folder / "variants"), folder / "variants", StepScheduler(home).run_as
    )
    yield Gateway(catalog, library, variants)
    await variants.close()
    await home.close()


async def ensure(library: Library, folder: Path, variant: Variant, keep: Any, idle: Any) -> Built:
    """What the builder's process does."""
    made = folder / variant.spec.name
    if made.is_dir():
        return Built(False, 0.0)
    found = {row.asset.sha256: library.shelf("default").path(row.asset) for row in library.store.owned("")}
    build(made, REPOSITORY, variant.graph.name, [Source(p.kind, found[p.sha256], p.weight) for p in variant.parts])
    return Built(True, 0.0)


@cache
def pristine(card: str) -> Any:
    """The default checkpoint in diffusers, in float32 with the engines' own numbers."""
    kind = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[card]
    return kind.from_pretrained(str(ROOT / "demo" / "checkpoints" / card), dtype=torch.float32)


def pipeline(card: str, *own: str) -> Any:
    """The same with copies of some of its parts, to be changed."""
    pipe = pristine(card)
    return type(pipe)(**pipe.components | {part: copy.deepcopy(getattr(pipe, part)) for part in own})


def adapted(card: str, files: Path, loras: Mapping[str, float]) -> Any:
    """With LoRAs beside its weights."""
    pipe = pipeline(card, *components(card))
    for name in loras:
        pipe.load_lora_weights(str(files), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(list(loras), adapter_weights=list(loras.values()))
    return pipe


def merged(card: str, files: Path, loras: Mapping[str, float]) -> Any:
    """With LoRAs in its weights, rounded once to half precision."""
    pipe = adapted(card, files, loras)
    pipe.fuse_lora(components=components(card), adapter_names=list(loras))
    pipe.unload_lora_weights()
    for component in components(card):
        for tensor in getattr(pipe, component).parameters():
            tensor.data = tensor.data.half().float()
    return pipe


def taken(pipe: Any, card: str) -> Picture:
    """What diffusers draws."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    with torch.inference_mode():
        latents = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            width=SIZES[card].width,
            height=SIZES[card].height,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        ).images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        pixels = pipe.image_processor.postprocess(decoded, output_type="np")[0]
    return latents[0].numpy(), (pixels * 255).round().astype(np.uint8)


@cache
def reference(card: str, files: Path, *loras: tuple[str, float]) -> Picture:
    """What diffusers draws with LoRAs in its weights."""
    return taken(merged(card, files, dict(loras)), card)


def assert_equal(found: Picture, reference: Picture, tolerance: float = LATENTS_TOLERANCE) -> None:
    assert np.mean((reference[1] == 0) | (reference[1] == 255)) < CLIPPED
    assert relative(found[0], reference[0]) < tolerance
    gap = np.abs(found[1].astype(np.float32) - reference[1]) / 255
    assert gap.mean() <= MEAN_TOLERANCE
    assert gap.max() <= MAX_TOLERANCE


CASES: tuple[tuple[str, Mapping[str, float], bool], ...] = (  # the last: in a quick run, too
    ("sd15", {"one": 1.0}, True),
    ("sd15", {"one": 0.5}, False),
    ("sd15", {"one": -0.5}, True),
    ("sd15", {"one": 0.7, "two": -0.4}, True),
    ("sdxl", {"large": 0.8}, True),
    ("sd15", {"blueprint-sd15": 0.8}, True),
    ("sdxl", {"neon-sdxl": 0.8}, False),
)


def _cases() -> Iterator[Any]:
    """All whose files are there; those that a quick run leaves out are marked (`make parity` runs all)."""
    for card, loras, quick in CASES:
        if all(name in MADE or DEMO.joinpath(f"{name}.safetensors").is_file() for name in loras):
            yield pytest.param(card, loras, marks=() if quick else (pytest.mark.thorough,), id=f"{card}-{loras}")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # peft's, of a second adapter
@pytest.mark.parametrize(("card", "loras"), list(_cases()))
async def test_loras_and_a_seed_give_the_picture_that_diffusers_gives(
    gateway: Gateway, files: Path, card: str, loras: Mapping[str, float]
) -> None:
    assert_equal(await gateway.draw(card, loras=loras), reference(card, files, *loras.items()))


async def test_half_precision_of_merged_weights_is_not_seen(gateway: Gateway, files: Path) -> None:
    """Against peft's own: a sum computed at each step, in float32."""
    theirs = taken(adapted("sd15", files, {"one": 1.0}), "sd15")
    assert_equal(await gateway.draw("sd15", loras={"one": 1.0}), theirs, ROUNDING)


async def test_another_weight_or_no_lora_is_far_from_the_reference(gateway: Gateway, files: Path) -> None:
    """The comparisons above can fail."""
    theirs, _ = reference("sd15", files, ("one", -0.5))
    for fields in ({}, {"loras": {"one": 1.0}}, {"loras": {"one": 0.7, "two": -0.4}}):
        latents, _ = await gateway.draw("sd15", **fields)
        assert relative(latents, theirs) > FAR, fields


async def test_peft_and_kohya_files_of_the_same_weights_give_equal_variants(tmp_path: Path, files: Path) -> None:
    pairs = [(("one", 0.5), ("one-kohya", 1.0))]
    if DEMO.joinpath("blueprint-kohya-sd15.safetensors").is_file():
        pairs.append((("blueprint-sd15", 1.0), ("blueprint-kohya-sd15", 1.0)))
    for pair in pairs:
        for graph in ("sd15_unet", "sd15_text_encoder"):
            changed = []
            for name, weight in pair:
                folder = tmp_path / f"{graph}--{name}"
                build(folder, REPOSITORY, graph, [Source("lora", files / f"{name}.safetensors", weight)])
                changed.append(
                    [folder.joinpath("1", file).read_bytes() for file in ("model.onnx", "changed.safetensors")]
                )
            assert changed[0] == changed[1], (pair, graph)


async def test_a_single_file_checkpoint_gives_the_picture_of_diffusers_from_single_file(
    gateway: Gateway, files: Path
) -> None:
    config = str(ROOT / "demo" / "checkpoints" / "sd15")
    pipe = StableDiffusionPipeline.from_single_file(
        str(files / "drawn.safetensors"), config=config, local_files_only=True, dtype=torch.float32
    )
    found = await gateway.draw("sd15", checkpoint="drawn")
    assert_equal(found, taken(pipe, "sd15"))
    plain, _ = await gateway.draw("sd15")
    assert relative(plain, found[0]) > FAR


async def test_a_vae_gives_the_picture_of_diffusers_with_it_under_the_same_latents(
    gateway: Gateway, files: Path
) -> None:
    pipe = pipeline("sd15", "vae")
    weights = {name: torch.from_numpy(tensor).float() for name, tensor in other(own("sd15", "vae"), 4).items()}
    pipe.vae.load_state_dict(weights)
    found, plain = await gateway.draw("sd15", vae="seen"), await gateway.draw("sd15")
    assert_equal(found, taken(pipe, "sd15"))
    assert np.array_equal(found[0], plain[0])
    assert np.abs(found[1].astype(np.float32) - plain[1]).mean() > 1
