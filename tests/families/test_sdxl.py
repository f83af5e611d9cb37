"""SDXL's texts, its conditioning and its stages, over networks of a few lines. tests/parity has the pictures."""

import asyncio
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from mediagen.v1 import image_pb2 as pb

from server.beginning import Encoded, begin
from server.canvas import Box, Inpainting
from server.catalog import Catalog
from server.denoising import denoise
from server.engines.port import Array, Spec, Tensors
from server.families.base import Posterior, Size, Stage, Text
from server.families.sdxl import FAMILY
from server.noise import NoiseStream
from server.pipeline import parameters
from server.plan import Plan
from server.prompts.weights import parse
from server.request import plan
from server.rpc.image_service import effective
from server.violations import InvalidRequest

FIRST, SECOND = "sdxl_text_encoder", "sdxl_text_encoder_2"
STEPS = 10


def plan_of(catalog: Catalog, **fields: object) -> Plan:
    """A short request of SDXL's."""
    return plan(pb.GenerateRequest(**{"engine": "sdxl", "prompt": "a red house", "steps": STEPS} | fields), catalog)


def refused(catalog: Catalog, **fields: object) -> set[str]:
    with pytest.raises(InvalidRequest) as error:
        plan_of(catalog, **fields)
    return {violation.field for violation in error.value.violations}


class Networks:
    """What the engines compute; `asked` has every execution."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Tensors]] = []

    async def run(self, spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        """States and sums that tell every token and every engine apart; denoisers that mix all they are told."""
        spec.check(inputs)
        self.asked.append((spec.name, inputs))
        if "input_ids" in inputs:
            ids = inputs["input_ids"].astype(np.float32) + len(spec.name)
            widths = {port.name: port.shape[-1] for port in spec.outputs}
            outputs = {"hidden_states": np.repeat(ids[..., None], widths["hidden_states"], axis=2)}
            return outputs | {name: np.repeat(ids[:, 5:6], widths[name], axis=1) for name in widths if name == "pooled"}
        told = sum(inputs[name].reshape(len(inputs["sample"]), -1).mean(axis=1) for name in inputs if name != "sample")
        return {"prediction": (np.tanh(inputs["sample"][:, :4]) + np.sin(told)[:, None, None, None]).astype(np.float32)}

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def ids_of(made: Plan, text: Text) -> Array:
    """Of a text's rows, which are one chunk each: rows 77."""
    return np.array([prompt.chunks[0].ids for prompt in made.rows(text) if len(prompt.chunks) == 1])


async def stages_of(made: Plan, networks: Networks) -> tuple[Stage, ...]:
    return await FAMILY.condition(made, made.engine.card, networks.run)


async def latents_of(made: Plan) -> tuple[Array, list[str]]:
    """Latents, and the denoisers in the order of their evaluations."""
    networks = Networks()
    stages = await stages_of(made, networks)
    networks.asked.clear()
    return await denoise(made, stages, Encoded((), ()), made.seeds[0], networks.run, lambda: None), networks.names()


def test_sizes_are_those_of_the_api() -> None:
    text = "1536x640 768x1344 832x1216 1344x768 1152x896 640x1536 1216x832 896x1152 1024x1024"
    assert {str(size) for size in FAMILY.sizes} == set(text.split())
    assert FAMILY.default_size == Size(1024, 1024)


def test_a_card_without_a_refiner_has_no_engine_for_it(sdxl_catalog: Catalog) -> None:
    names = [spec.name for spec in sdxl_catalog["ssd"].specs]
    assert names == [f"ssd_{part}" for part in ("text_encoder", "text_encoder_2", "vae_encoder", "unet", "vae_decoder")]
    assert [spec.name for spec in sdxl_catalog["sdxl"].specs][4] == "sdxl_refiner"


def test_each_encoder_reads_its_prompt_with_its_own_padding(sdxl_catalog: Catalog) -> None:
    made = plan_of(sdxl_catalog, prompt_2="oil", negative_prompt="fog", negative_prompt_2="dark")
    tokenizers = made.engine.tokenizers
    for engine, field, negative, positive in (
        (FIRST, "prompt", "fog", "a red house"),
        (SECOND, "prompt_2", "dark", "oil"),
        (SECOND, "prompt", "fog", "a red house"),  # the refiner's, which has no first encoder
    ):
        rows = made.rows(Text(engine, field, 3))  # type: ignore[arg-type]
        assert [prompt.chunks for prompt in rows] == [
            tokenizers[engine].chunks(parse(text), 3).chunks for text in (negative, positive)
        ]
    first, second = (made.prompts[Text(engine, "prompt", 3)].chunks[0].ids for engine in (FIRST, SECOND))
    assert first[-1] != second[-1]


def test_a_second_text_defaults_to_the_first(sdxl_catalog: Catalog) -> None:
    made = plan_of(sdxl_catalog, negative_prompt="fog")
    assert made.rows(Text(SECOND, "prompt_2", 3)) == made.rows(Text(SECOND, "prompt", 3))
    assert (made.prompt_2, made.negative_prompt_2) == ("a red house", "fog")


@pytest.mark.parametrize("fields", [{"use_refiner": True}, {"use_refiner": False}, {"high_noise_frac": 0.8}])
def test_a_refiner_that_is_not_there_may_be_asked_for_as_documented(sdxl_catalog: Catalog, fields: Any) -> None:
    assert plan_of(sdxl_catalog, engine="ssd", **fields).high_noise_frac == 1.0


def test_a_share_for_a_refiner_that_is_not_there_is_refused(sdxl_catalog: Catalog) -> None:
    assert refused(sdxl_catalog, engine="ssd", high_noise_frac=0.5) == {"high_noise_frac"}


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_a_share_outside_0_to_1_is_refused(sdxl_catalog: Catalog, value: float) -> None:
    assert refused(sdxl_catalog, high_noise_frac=value) == {"high_noise_frac"}


@pytest.mark.parametrize(
    ("fields", "share"), [({}, 0.8), ({"high_noise_frac": 0.3}, 0.3), ({"use_refiner": False}, 1.0)]
)
def test_the_refiner_takes_over_at_the_documented_share_unless_told(
    sdxl_catalog: Catalog, fields: Any, share: float
) -> None:
    assert plan_of(sdxl_catalog, **fields).high_noise_frac == share


async def test_the_base_is_told_both_encoders_states_the_second_ones_sum_and_the_size(sdxl_catalog: Catalog) -> None:
    made = plan_of(sdxl_catalog, negative_prompt="fog", width=1216, height=832, high_noise_frac=1.0)
    (stage,) = await stages_of(made, Networks())
    states = stage.networks[0].inputs["encoder_hidden_states"]
    ids, ids_2 = (ids_of(made, text) for text in FAMILY.texts(made.engine.card)[:2])
    assert np.array_equal(states[..., 0], ids + len(FIRST))
    assert np.array_equal(states[..., -1], ids_2 + len(SECOND))
    assert np.array_equal(stage.networks[0].inputs["text_embeds"][:, 0], ids_2[:, 5] + len(SECOND))
    assert stage.networks[0].inputs["time_ids"].tolist() == [[832, 1216, 0, 0, 832, 1216]] * 2


async def test_the_refiner_is_told_the_second_encoders_states_and_aesthetic_scores(sdxl_catalog: Catalog) -> None:
    made = plan_of(sdxl_catalog, negative_prompt="fog", width=1216, height=832)
    stage = (await stages_of(made, Networks()))[1]
    ids = ids_of(made, Text(SECOND, "prompt", 3))
    assert np.array_equal(stage.networks[0].inputs["encoder_hidden_states"][..., 0], ids + len(SECOND))
    assert stage.networks[0].inputs["time_ids"].tolist() == [[832, 1216, 0, 0, 2.5], [832, 1216, 0, 0, 6.0]]


async def test_no_negative_prompt_is_zeros_to_the_base_and_the_empty_text_to_the_refiner(sdxl_catalog: Catalog) -> None:
    base, refiner = await stages_of(plan_of(sdxl_catalog), Networks())
    empty = (await stages_of(plan_of(sdxl_catalog, negative_prompt=""), Networks()))[1]
    for name in ("encoder_hidden_states", "text_embeds"):
        assert not base.networks[0].inputs[name][0].any()
        assert base.networks[0].inputs[name][1].all()
        assert np.array_equal(refiner.networks[0].inputs[name], empty.networks[0].inputs[name])


@pytest.mark.parametrize("fields", [{"negative_prompt": ""}, {"negative_prompt_2": "x"}])
async def test_an_empty_negative_prompt_is_encoded(sdxl_catalog: Catalog, fields: Any) -> None:
    base, _ = await stages_of(plan_of(sdxl_catalog, **fields), Networks())
    assert base.networks[0].inputs["encoder_hidden_states"][0].all()


async def test_a_checkpoint_trained_without_zeros_gets_the_empty_text(sdxl_catalog: Catalog) -> None:
    engine = sdxl_catalog["sdxl"]
    card = dataclasses.replace(engine.card, zeros_for_no_negative=False)  # type: ignore[call-arg]
    catalog = {"sdxl": dataclasses.replace(engine, card=card)}
    base, _ = await stages_of(plan_of(catalog), Networks())
    assert base.networks[0].inputs["encoder_hidden_states"][0].all()


async def test_without_guidance_only_the_positive_half_is_there(sdxl_catalog: Catalog) -> None:
    stages = await stages_of(plan_of(sdxl_catalog, cfg_scale=1.0), Networks())
    assert [len(tensor) for stage in stages for tensor in stage.networks[0].inputs.values()] == [1] * 6
    assert stages[1].networks[0].inputs["time_ids"][0, -1] == 6.0


async def test_the_encoders_run_side_by_side_and_each_once(sdxl_catalog: Catalog) -> None:
    networks, both = Networks(), asyncio.Barrier(2)

    async def meet(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        async with asyncio.timeout(20):
            await both.wait()  # for ever, were the other not under way
        return await networks.run(spec, inputs)

    made = plan_of(sdxl_catalog, negative_prompt="fog")
    await FAMILY.condition(made, made.engine.card, meet)
    assert sorted(networks.names()) == [FIRST, SECOND]


async def test_one_encoder_that_fails_ends_the_other(sdxl_catalog: Catalog) -> None:
    ended = asyncio.Event()

    async def run(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        if spec.name == FIRST:
            raise RuntimeError("gone")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    made = plan_of(sdxl_catalog)
    with pytest.raises(RuntimeError, match="gone"):
        await FAMILY.condition(made, made.engine.card, run)
    async with asyncio.timeout(20):
        await ended.wait()


@pytest.mark.parametrize(
    ("fields", "base", "refiner"),
    [
        ({}, 8, 2),
        ({"high_noise_frac": 0.5}, 5, 5),
        ({"high_noise_frac": 1.0}, 10, 0),
        ({"high_noise_frac": 0.0}, 0, 10),
        ({"use_refiner": False, "high_noise_frac": 0.8}, 10, 0),
        ({"high_noise_frac": 0.95}, 9, 1),  # of the timesteps 901, 801, ... 1 only the last is below 50
        ({"engine": "ssd"}, 10, 0),
    ],
)
async def test_each_stage_does_its_share_and_only_what_runs_is_named(
    sdxl_catalog: Catalog, fields: Any, base: int, refiner: int
) -> None:
    made = plan_of(sdxl_catalog, seed=1, **fields)
    name = made.engine.card.name
    _, denoisers = await latents_of(made)
    assert denoisers == [f"{name}_unet"] * base + [f"{name}_refiner"] * refiner
    networks = Networks()
    await stages_of(made, networks)
    assert [*sorted(networks.names()), *dict.fromkeys(denoisers), f"{name}_vae_decoder"] == list(effective(made).models)


async def test_a_share_of_1_is_no_refiner_bit_for_bit(sdxl_catalog: Catalog) -> None:
    all_base, _ = await latents_of(plan_of(sdxl_catalog, seed=1, high_noise_frac=1.0))
    without, _ = await latents_of(plan_of(sdxl_catalog, seed=1, use_refiner=False))
    split, _ = await latents_of(plan_of(sdxl_catalog, seed=1))
    assert all_base.tobytes() == without.tobytes() != split.tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt_2": "oil", "negative_prompt": "fog", "negative_prompt_2": "dark", "high_noise_frac": 0.25},
        {"negative_prompt": "", "use_refiner": False, "sampler": pb.SAMPLER_K_EULER},
        {"engine": "ssd", "prompt_2": "oil"},
    ],
)
def test_what_a_file_says_is_the_request_that_makes_it_again(sdxl_catalog: Catalog, fields: Any) -> None:
    made = plan_of(sdxl_catalog, seed=3, **fields)
    again = ParseDict(json.loads(parameters(made, made.seeds[0])), pb.GenerateRequest())
    assert plan(again, sdxl_catalog) == made


def test_the_effective_parameters_tell_both_texts_and_the_share(sdxl_catalog: Catalog) -> None:
    told = effective(plan_of(sdxl_catalog, prompt_2="oil", negative_prompt="fog"))
    assert (told.prompt, told.prompt_2, told.negative_prompt, told.negative_prompt_2, told.high_noise_frac) == (
        "a red house", "oil", "fog", "fog", 0.8,
    )  # fmt: skip
    told = effective(plan_of(sdxl_catalog, engine="ssd"))
    assert not any(told.HasField(field) for field in ("negative_prompt", "negative_prompt_2", "high_noise_frac"))  # type: ignore[arg-type]


def test_what_an_overlong_text_loses_is_told_once_for_all_that_read_it(sdxl_catalog: Catalog) -> None:
    long = "a red house " * 75 + "and a lighthouse"
    (notice,) = plan_of(sdxl_catalog, prompt=long).notices
    assert notice.startswith(f"prompt is longer than {FIRST} and {SECOND} can read (3 x 77 tokens)")
    assert [text.split()[0] for text in plan_of(sdxl_catalog, prompt_2=long).notices] == ["prompt_2"]


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("inpainting", [False, True])
async def test_a_refiner_keeps_to_what_is_known_whether_or_not_its_base_is_told(
    sdxl_catalog: Catalog, inpainting: bool, strength: float
) -> None:
    sdxl = sdxl_catalog["sdxl"]
    card = replace(sdxl.card, inpainting=inpainting)
    mask = np.zeros((1024, 1024), bool)
    mask[:512] = True
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    start = Inpainting(pixels, mask, pixels, mask, Box(0, 0, 1024, 1024))
    made = replace(
        plan_of(sdxl_catalog), engine=replace(sdxl, card=card), start=start, strength=strength, high_noise_frac=0.5
    )
    networks = Networks()
    stages = await FAMILY.condition(made, card, networks.run)
    networks.asked.clear()
    clean = np.full((4, 128, 128), 3, np.float32)  # latents of the picture, certain ones
    posterior = Posterior(clean, np.zeros_like(clean))
    encoded = Encoded((posterior,), (posterior,) if inpainting else ())
    assert made.encodings == len(encoded.picture) + len(encoded.masked)
    latents = await denoise(made, stages, encoded, 7, networks.run, lambda: None)
    assert set(networks.names()) == {"sdxl_unet", "sdxl_refiner"}
    np.testing.assert_array_equal(latents[:, 64:], clean[:, 64:])
    assert np.abs(latents[:, :64] - 3).mean() > 0.5


async def test_at_full_strength_a_base_that_is_told_begins_alike_with_and_without_a_refiner(
    sdxl_catalog: Catalog,
) -> None:
    sdxl = sdxl_catalog["sdxl"]
    card = replace(sdxl.card, inpainting=True)
    mask = np.ones((1024, 1024), bool)
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    start = Inpainting(pixels, mask, pixels, mask, Box(0, 0, 1024, 1024))
    mean = np.zeros((4, 128, 128), np.float32)
    posterior = Posterior(mean, mean + 1)
    first = []
    for share, picture in ((0.5, (posterior,)), (1.0, ())):
        made = replace(
            plan_of(sdxl_catalog),
            engine=replace(sdxl, card=card),
            start=start,
            strength=1.0,
            high_noise_frac=share,
        )
        assert made.needs_picture == bool(picture)
        beginning = begin(made, Encoded(picture, (posterior,)), NoiseStream(7))
        first.append((beginning.x, beginning.telling.told))
    for one, other in zip(*first, strict=True):
        np.testing.assert_array_equal(one, other)
