"""What a denoiser is told of a plan's texts: chunks side by side, weights, skipped layers, on every family."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from families.test_sd3 import CARD, catalog_of
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog
from server.engines.port import Array, Port, Spec, Tensors
from server.families.texts import text_states
from server.request import plan
from server.tokenizer import Chunk, Prompt

TOKENS, WIDTH = 4, 3
NONE: Mapping[str, Array] = {}  # of inversions
STATES = Port("hidden_states", "float32", ("rows", TOKENS, WIDTH))
IDS, SKIP = Port("input_ids", "int64", ("rows", TOKENS)), Port("skip", "int64", ("rows",))
PLAIN = Spec("plain", (IDS, SKIP), (STATES,), max_rows=3)
POOLING = Spec("pooling", (IDS,), (STATES, Port("pooled", "float32", ("rows", 2))), max_rows=16)
EMPTY = Chunk((1, 9, 9, 9), (1.0,) * TOKENS)
LONG = "a red house and a sailboat by the sea, " * 10  # two chunks


class Network:
    """A text engine whose states tell every token, its place, its neighbours and the skipped layers apart."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Tensors]] = []

    async def run(self, spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        spec.check(inputs)
        self.asked.append((spec.name, inputs))
        rows, tokens = inputs["input_ids"].shape
        skip = inputs["skip"] if "skip" in inputs else np.zeros(rows, np.int64)
        shapes = {port.name: port.shape[1:] for port in spec.outputs}
        width = int(shapes["hidden_states"][1])
        told = inputs["input_ids"] + 0.1 * np.arange(tokens) + 0.01 * inputs["input_ids"].sum(axis=1, keepdims=True)
        states = np.sin(told[..., None] + np.arange(width) + 5 * skip[:, None, None]).astype(np.float32)
        outputs = {"hidden_states": states, "prediction": np.zeros((rows, 1), np.float32)}
        if "pooled" in shapes:
            outputs["pooled"] = np.repeat(states[:, 1, :1], int(shapes["pooled"][0]), axis=1)
        return {name: outputs[name] for name in shapes}


def chunk(*ids: int, weights: Sequence[float] = (1.0,) * TOKENS) -> Chunk:
    return Chunk(ids, tuple(weights))


async def alone(spec: Spec, ids: Sequence[int], skip: int = 0) -> Array:
    """The states of one chunk, tokens width."""
    given = {"input_ids": np.array([ids]), "skip": np.array([skip])}
    answer = await Network().run(spec, {port.name: given[port.name] for port in spec.inputs})
    return answer["hidden_states"][0]


async def test_chunks_lie_side_by_side_and_the_summary_is_the_first_ones() -> None:
    first, second = chunk(1, 2, 3, 9), chunk(1, 4, 9, 9)
    found = await text_states(POOLING, [Prompt((first, second), EMPTY)], [0], Network().run, NONE)
    expected = np.concatenate([await alone(POOLING, first.ids), await alone(POOLING, second.ids)])
    assert np.array_equal(found["hidden_states"], expected[None])
    assert np.array_equal(found["pooled"], np.repeat(expected[None, 1, :1], 2, axis=1))


async def test_a_weight_moves_a_state_from_the_empty_texts_at_its_place_and_no_other() -> None:
    weighted = chunk(1, 2, 3, 9, weights=(1.0, 1.5, 1.0, 1.0))
    other = chunk(1, 4, 9, 9, weights=(1.0, -2.0, 1.0, 1.0))
    found = (await text_states(PLAIN, [Prompt((weighted, other), EMPTY)], [1], Network().run, NONE))["hidden_states"][0]
    empty = await alone(PLAIN, EMPTY.ids, 1)
    for begin, each, weight in ((0, weighted, 1.5), (TOKENS, other, -2.0)):
        states = await alone(PLAIN, each.ids, 1)
        np.testing.assert_allclose(found[begin + 1], empty[1] + weight * (states[1] - empty[1]), rtol=1e-5)
        untouched = [begin, begin + 2, begin + 3]
        assert found[untouched].tobytes() == states[[0, 2, 3]].tobytes()


async def test_weights_of_1_encode_no_empty_text_and_change_no_bit() -> None:
    network = Network()
    found = await text_states(PLAIN, [Prompt((chunk(1, 2, 3, 9),), EMPTY)], [0], network.run, NONE)
    assert found["hidden_states"].tobytes() == (await alone(PLAIN, (1, 2, 3, 9))).tobytes()
    ((_, inputs),) = network.asked
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 9]]


async def test_each_distinct_chunk_is_encoded_once_for_each_count_of_skipped_layers() -> None:
    network = Network()
    same = Prompt((chunk(1, 2, 3, 9), EMPTY), EMPTY)
    found = (await text_states(PLAIN, [same, same, same], [0, 2, 2], network.run, NONE))["hidden_states"]
    asked = [
        (tuple(ids), skip)
        for _, inputs in network.asked
        for ids, skip in zip(inputs["input_ids"].tolist(), inputs["skip"].tolist(), strict=True)
    ]
    assert asked == [(each.ids, skip) for skip in (0, 2) for each in same.chunks]
    assert found[1].tobytes() == found[2].tobytes() != found[0].tobytes()


async def test_what_is_more_than_an_engine_takes_goes_in_several_calls_side_by_side() -> None:
    network, both = Network(), asyncio.Barrier(2)

    async def meet(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        async with asyncio.timeout(20):
            await both.wait()
        return await network.run(spec, inputs)

    prompts = [Prompt((chunk(1, number, 9, 9),), EMPTY) for number in range(5)]
    found = (await text_states(PLAIN, prompts, [0] * 5, meet, NONE))["hidden_states"]
    assert sorted(len(inputs["input_ids"]) for _, inputs in network.asked) == [2, 3]
    for number in range(5):
        assert found[number].tobytes() == (await alone(PLAIN, (1, number, 9, 9))).tobytes()


async def test_no_texts_are_no_call() -> None:
    network = Network()
    assert await text_states(PLAIN, [], [], network.run, NONE) == {}
    assert network.asked == []


TABLED = Spec("tabled", (IDS, SKIP, Port("vectors", "float32", ("rows", "vectors", WIDTH))), (STATES,), max_rows=2)


async def test_every_row_of_every_call_has_the_vectors_that_ids_below_0_stand_for() -> None:
    network = Network()
    table = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
    prompts = [Prompt((chunk(1, -1, -2, 9), chunk(1, number, 9, 9)), EMPTY) for number in (3, 4)]
    await text_states(TABLED, prompts, [0, 0], network.run, {"other": table + 1, "tabled": table})
    assert [inputs["vectors"].shape for _, inputs in network.asked] == [(2, 2, WIDTH), (1, 2, WIDTH)]
    assert all((inputs["vectors"] == table).all() for _, inputs in network.asked)


async def test_without_inversions_an_engine_that_could_take_some_is_given_one_vector_of_zeros() -> None:
    network = Network()
    await text_states(TABLED, [Prompt((EMPTY,), EMPTY)], [0], network.run, {})
    ((_, inputs),) = network.asked
    assert inputs["vectors"].shape == (1, 1, WIDTH)
    assert not inputs["vectors"].any()


async def told(catalog: Catalog, **fields: object) -> list[Tensors]:
    """What each stage of a request is told besides its sample."""
    made = plan(pb.GenerateRequest(**{"prompt": "a red house"} | fields), catalog)
    stages = await made.engine.family.condition(made, made.engine.card, Network().run)
    return [network.inputs for stage in stages for network in stage.networks]


async def test_a_long_text_is_as_long_to_both_halves_on_every_family_with_chunks(
    catalog: Catalog, sdxl_catalog: Catalog
) -> None:
    for engines, engine, fields in (
        (catalog, "sd15", {"prompt": LONG}),
        (catalog, "sd15", {"negative_prompt": LONG}),
        (sdxl_catalog, "sdxl", {"prompt": LONG}),
        (sdxl_catalog, "sdxl", {"prompt_2": LONG, "negative_prompt": "fog"}),
        (sdxl_catalog, "sdxl", {"negative_prompt_2": LONG}),
    ):
        for inputs in await told(engines, engine=engine, **fields):
            states = inputs["encoder_hidden_states"]
            assert states.shape[:2] == (2, 2 * 77)
            assert states[0].tobytes() != states[1].tobytes()


async def test_no_negative_text_is_zeros_as_long_as_the_prompt(sdxl_catalog: Catalog) -> None:
    base, refiner = await told(sdxl_catalog, engine="sdxl", prompt=LONG)
    assert not base["encoder_hidden_states"][0].any()
    assert refiner["encoder_hidden_states"][0].all()


async def test_a_negative_text_without_guidance_makes_the_prompt_no_longer(catalog: Catalog) -> None:
    (without,) = await told(catalog, engine="sd15", cfg_scale=1.0)
    (negated,) = await told(catalog, engine="sd15", cfg_scale=1.0, negative_prompt=LONG)
    assert negated["encoder_hidden_states"].tobytes() == without["encoder_hidden_states"].tobytes()


@pytest.mark.parametrize("engine", ["sd15", "sdxl"])
async def test_layers_are_left_out_for_the_prompt_and_not_for_the_negative(
    catalog: Catalog, sdxl_catalog: Catalog, engine: str
) -> None:
    engines = catalog if engine == "sd15" else sdxl_catalog
    all_layers = await told(engines, engine=engine, negative_prompt="fog")
    skipped = await told(engines, engine=engine, negative_prompt="fog", clip_skip=1)
    assert len(all_layers) == (1 if engine == "sd15" else 2)
    for before, after in zip(all_layers, skipped, strict=True):
        negative, positive = (after["encoder_hidden_states"][row].tobytes() for row in (0, 1))
        assert negative == before["encoder_hidden_states"][0].tobytes()
        assert positive != before["encoder_hidden_states"][1].tobytes()


async def test_weights_in_either_text_are_seen_by_every_engine(
    catalog: Catalog, sdxl_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sd3 = catalog_of(CARD, tmp_path_factory.mktemp("sd3"))
    for engines, engine in ((catalog, "sd15"), (sdxl_catalog, "sdxl"), (sd3, "sd3")):
        plain = await told(engines, engine=engine, negative_prompt="a house")
        positive = await told(engines, engine=engine, prompt="a (red:1.5) house", negative_prompt="a house")
        negative = await told(engines, engine=engine, negative_prompt="a (house:0.5)")
        for before, changed, negated in zip(plain, positive, negative, strict=True):
            for after, row in ((changed, 1), (negated, 0)):
                moved = (after["encoder_hidden_states"] != before["encoder_hidden_states"]).any(axis=2)
                assert not moved[1 - row].any()
                assert moved[row].sum() == (2 if engine == "sd3" else 1)  # CLIP's token and T5's
                pooled = {"text_embeds", "pooled_projections"} & after.keys()
                assert all(after[name].tobytes() == before[name].tobytes() for name in pooled)
