"""Transfer images: what is asked of a trigger word, and which states the pictures change."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from server.adapters.transfer import Marked, Transfer, merged, text_only, wrong_triggers
from server.engines.port import Array, Port, Spec, Tensors
from server.tokenizer import Chunk, Prompt

WIDTH, WIDTH_2, TOKENS = 2, 3, 8
ENCODER = Spec(
    "encoder",
    (Port("pixel_values", "float32", ("rows", 3, 2, 2)),),
    (Port("identity", "float32", ("rows", WIDTH + WIDTH_2)),),
    max_rows=2,
)
FUSION = Spec(
    "fusion",
    tuple(Port(name, "float32", ("rows", WIDTH + WIDTH_2)) for name in ("text", "identity")),
    (Port("fused", "float32", ("rows", WIDTH + WIDTH_2)),),
    max_rows=2,
)
RANDOM = np.random.RandomState(7)
STATES = (
    RANDOM.normal(size=(TOKENS, WIDTH)).astype(np.float32),
    RANDOM.normal(size=(TOKENS, WIDTH_2)).astype(np.float32),
)
LUIS = Transfer("luis", RANDOM.normal(size=(2, 3, 2, 2)).astype(np.float32))
ANNA = Transfer("anna", RANDOM.normal(size=(1, 3, 2, 2)).astype(np.float32))
EMPTY = Chunk((0,) * TOKENS, (1.0,) * TOKENS)


def identity(pixels: Array) -> Array:
    return np.stack([each.reshape(-1)[: WIDTH + WIDTH_2] for each in pixels])


async def run(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
    spec.check(inputs)
    if spec is ENCODER:
        return {"identity": identity(inputs["pixel_values"])}
    return {"fused": inputs["text"] + 10 * inputs["identity"]}


def marked(places: Mapping[int, int]) -> Marked:
    return Marked(Prompt((EMPTY,), EMPTY), places)


async def together(first: Mapping[int, int], second: Mapping[int, int], transfers: Sequence[Transfer]) -> Array:
    return await merged(STATES, (marked(first), marked(second)), transfers, ENCODER, FUSION, run)


async def test_each_picture_is_fused_into_the_state_of_its_token_and_into_no_other() -> None:
    places = {0: 3, 1: 4, 2: 6}
    found = await together(places, places, [LUIS, ANNA])
    expected = np.concatenate(STATES, axis=1)
    for picture, place in places.items():
        pixels = np.concatenate([LUIS.pixel_values, ANNA.pixel_values])[picture]
        expected[place] += 10 * identity(pixels[None])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


async def test_where_the_encoders_read_different_texts_each_half_goes_to_its_own_place() -> None:
    found = await together({0: 2}, {0: 5}, [ANNA])
    fused = np.concatenate([STATES[0][2], STATES[1][5]]) + 10 * identity(ANNA.pixel_values)[0]
    expected = np.concatenate(STATES, axis=1)
    expected[2, :WIDTH] = fused[:WIDTH]
    expected[5, WIDTH:] = fused[WIDTH:]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


async def test_a_picture_whose_token_was_cut_from_one_text_is_left_out() -> None:
    found = await together({0: 3}, {0: 3, 1: 4}, [LUIS])
    assert np.array_equal(found, await together({0: 3}, {0: 3}, [LUIS]))
    assert np.array_equal(await together({}, {0: 3}, [LUIS]), np.concatenate(STATES, axis=1))


async def test_the_states_given_stay_as_they_are() -> None:
    before = [states.copy() for states in STATES]
    await together({0: 1}, {0: 1}, [ANNA])
    assert all(np.array_equal(states, kept) for states, kept in zip(STATES, before, strict=True))


@pytest.mark.parametrize(("evaluations", "expected"), [(1, 1), (4, 1), (5, 2), (10, 3), (30, 7), (50, 11)])
def test_the_first_fifth_of_the_evaluations_and_one_more_are_told_of_no_picture(
    evaluations: int, expected: int
) -> None:
    assert text_only(evaluations) == expected


@pytest.mark.parametrize(
    "prompt",
    ["a man luis", "a (man luis:1.3), smiling", "a man (luis)", "a man luis and a woman anna", "a man  luis's hat"],
)
def test_a_trigger_word_behind_a_word_is_right(prompt: str) -> None:
    triggers = ["luis", "anna"] if "anna" in prompt else ["luis"]
    assert list(wrong_triggers({"prompt": prompt, "prompt_2": prompt}, triggers)) == []


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a man", "prompt has it 0 times"),
        ("a man Luis", "prompt has it 0 times"),
        ("a man luisa", "prompt has it 0 times"),
        ("a man luis and a dog luis", "prompt has it 2 times"),
        ("luis", "prompt has no word before it"),
        ("(luis:1.3) smiling", "prompt has no word before it"),
        ("a man, luis", "prompt has no word before it"),
    ],
)
def test_what_is_wrong_with_a_trigger_word_is_told_with_what_to_write(prompt: str, told: str) -> None:
    ((trigger, why), *_) = wrong_triggers({"prompt": prompt}, ["luis"])
    assert trigger == "luis"
    assert why.startswith(told)
    assert "a man luis" in why


def test_a_trigger_word_is_no_word_before_another() -> None:
    ((trigger, why),) = wrong_triggers({"prompt": "a man luis anna"}, ["luis", "anna"])
    assert trigger == "anna"
    assert "no word before it" in why


def test_each_text_is_asked() -> None:
    ((_, why),) = wrong_triggers({"prompt": "a man luis", "prompt_2": "oil"}, ["luis"])
    assert why.startswith("prompt_2 has it 0 times")
