"""What a dry run tells is what happens: executions are counted on engines that compute nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from engines.fake import FakeEngines
from json_service import hollow_engines
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from server.adapters.weights import Part
from server.catalog import Catalog, Engine
from server.engines.port import Spec, Tensors
from server.explain import explain
from server.meter import Shape
from server.pipeline import generate
from server.plan import Plan
from server.request import plan
from server.scheduler import StepScheduler

SMALL = {"width": 384, "height": 704}


def picture(value: int) -> bytes:
    """A flat PNG file; white as a mask paints all."""
    file = BytesIO()
    Image.new("RGB", (384, 704), (value, value, value)).save(file, "PNG")
    return file.getvalue()


async def engines_of(engine: Engine) -> FakeEngines:
    """Loaded."""
    fake = hollow_engines({engine.card.name: engine})
    for spec in engine.specs:
        await fake.load(spec.name)
    return fake


async def executed(what: Plan) -> Counter[str]:
    """How often each network really runs, each execution in a call of its own."""
    engines = await engines_of(what.engine)

    async def run(spec: Spec, inputs: Tensors) -> Mapping[str, np.ndarray]:
        return await engines.run(spec.name, inputs)

    async for _ in generate(what, run):
        pass
    return Counter(name for name, _ in engines.calls)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cfg_scale": 1.0},
        {"sampler": pb.SAMPLER_PNDM},
        {"sampler": pb.SAMPLER_HEUN},
        {"sampler": pb.SAMPLER_DPM_2_ANCESTRAL, "num_images": 3},
        {"sampler": pb.SAMPLER_LCM, "steps": 1},
        {"num_images": 4, "negative_prompt": "fog"},
        {"prompt": "a (red:1.3) house " * 60, "negative_prompt": "(fog) " * 100, "clip_skip": 1},
        {"init_image": picture(9), "strength": 0.5, "num_images": 2},
        {"init_image": picture(9), "strength": 0.01},
        {"init_image": picture(9), "strength": 0.5, "sampler": pb.SAMPLER_PNDM},
        {"init_image": picture(9), "mask_image": picture(255), "strength": 1.0},
        {"init_image": picture(9), "mask_image": picture(255), "strength": 0.6, "sampler": pb.SAMPLER_K_HEUN},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
async def test_executions_are_told_as_they_happen(catalog: Catalog, fields: dict[str, object]) -> None:
    request = pb.GenerateRequest(**{"engine": "sd15", "prompt": "a house", "steps": 4, **SMALL, **fields})
    what = plan(request, catalog)
    assert dict(explain(what, no_time).executions) == await executed(what)


@pytest.mark.parametrize("engine", ["sdxl", "ssd"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"high_noise_frac": 0.5, "sampler": pb.SAMPLER_PNDM},
        {"high_noise_frac": 0.6, "sampler": pb.SAMPLER_HEUN, "num_images": 2},
        {"high_noise_frac": 1.0, "negative_prompt": ""},
        {"high_noise_frac": 0.0, "cfg_scale": 1.0},
        {"prompt_2": "(oil) " * 100, "negative_prompt": "fog " * 200, "negative_prompt_2": "rain", "clip_skip": 2},
        {"init_image": picture(9), "strength": 0.5, "high_noise_frac": 0.8},
        {"init_image": picture(9), "strength": 0.1, "high_noise_frac": 0.8},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
async def test_executions_of_base_and_refiner_are_told_as_they_happen(
    sdxl_catalog: Catalog, engine: str, fields: dict[str, object]
) -> None:
    fields = {
        name: value for name, value in fields.items() if engine == "sdxl" or name not in sdxl_catalog["ssd"].refuses
    }
    request = pb.GenerateRequest(**{"engine": engine, "prompt": "a house", "steps": 5, **fields})
    what = plan(request, sdxl_catalog)
    assert dict(explain(what, no_time).executions) == await executed(what)


@pytest.mark.parametrize("images", [1, 3, 8, 9, 16])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
async def test_calls_are_estimated_as_pictures_share_them(catalog: Catalog, images: int, guidance: float) -> None:
    request = pb.GenerateRequest(
        engine="sd15", prompt="a house", steps=3, num_images=images, cfg_scale=guidance, **SMALL
    )
    what = plan(request, catalog)
    engines = await engines_of(what.engine)
    async for _ in generate(what, StepScheduler(engines).run):
        pass
    expected: dict[tuple[str, Shape], None] = {}

    def one_second(network: str, shape: Shape) -> float:
        expected[network, shape] = None
        return 1.0

    assert explain(what, one_second).seconds == len(engines.calls)
    ran = {
        (name, Shape(len(first), first.size // len(first)))
        for name, inputs in engines.calls
        for first in [inputs[next(spec for spec in what.engine.specs if spec.name == name).inputs[0].name]]
    }
    assert set(expected) == ran


async def test_an_estimate_is_the_sum_of_what_is_known_and_names_what_is_not(catalog: Catalog) -> None:
    request = pb.GenerateRequest(engine="sd15", prompt="a house", steps=10, num_images=2, **SMALL)
    what = plan(request, catalog)
    text_encoder, unet, vae_decoder = (f"sd15_{part}" for part in ("text_encoder", "unet", "vae_decoder"))
    known = {unet: 0.25, vae_decoder: 2.0}
    found = explain(what, lambda network, shape: known.get(network))
    assert found.seconds == 10 * 0.25 + 2 * 2.0
    assert found.unmeasured == (text_encoder,)


def test_other_weights_are_named_as_they_run_and_take_the_time_of_their_graph(catalog: Catalog) -> None:
    request = pb.GenerateRequest(engine="sd15", prompt="a house", steps=10, **SMALL)
    lora = Part("lora", "ab" * 32, frozenset({"unet"}))
    what = replace(plan(request, catalog), parts=(lora,))
    text_encoder, unet, vae_decoder = (f"sd15_{part}" for part in ("text_encoder", "unet", "vae_decoder"))
    changed = what.variants[unet].spec.name
    first = explain(what, lambda network, shape: {unet: 0.25, text_encoder: 1.0, vae_decoder: 2.0}.get(network))
    assert first.executions == {text_encoder: 1, changed: 10, vae_decoder: 1}
    assert (first.seconds, first.unmeasured) == (10 * 0.25 + 3.0, ())
    warm = explain(what, lambda network, shape: {unet: 0.25, changed: 0.5}.get(network))
    assert (warm.seconds, warm.unmeasured) == (10 * 0.5, (text_encoder, vae_decoder))
    assert explain(what, no_time).unmeasured == (text_encoder, changed, vae_decoder)


def no_time(network: str, shape: Shape) -> None:
    """Nothing has been measured."""
