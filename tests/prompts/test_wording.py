"""The texts of a request in a plan: in a style, in equally many chunks, with every loss told."""

from collections.abc import Sequence

import numpy as np
import pytest
from mediagen.v1 import image_pb2 as pb

from server.adapters.tokens import Inversion
from server.adapters.transfer import Transfer
from server.catalog import Catalog
from server.plan import Plan
from server.prompts.styles import STYLES
from server.prompts.weights import parse
from server.request import plan
from server.rpc.image_service import effective
from server.violations import InvalidRequest
from server.wording import Reading, Wording, read_texts

LONG = "a red house and a sailboat by the sea, " * 10  # two chunks
OVERLONG = "a red house " * 75 + "and a lighthouse"


def plan_of(catalog: Catalog, **fields: object) -> Plan:
    return plan(pb.GenerateRequest(**{"engine": "sdxl", "prompt": "a red house"} | fields), catalog)


@pytest.mark.parametrize("field", ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"])
def test_all_texts_have_as_many_chunks_as_the_longest_filled_up_with_empty_ones(
    sdxl_catalog: Catalog, field: str
) -> None:
    made = plan_of(sdxl_catalog, **{"prompt_2": "oil", "negative_prompt": "fog", "negative_prompt_2": "x", field: LONG})
    for texts in (made.prompts, made.negative_prompts):
        assert {len(prompt.chunks) for prompt in texts.values()} == {2}
        for text, prompt in texts.items():
            assert prompt.empty == sdxl_catalog["sdxl"].tokenizers[text.engine].empty
    filled = [prompt for prompt in made.prompts.values() if prompt.chunks[1] == prompt.empty]
    assert len(filled) == {"prompt": 1, "prompt_2": 2}.get(field, 3)  # the refiner reads `prompt`, too


def test_a_style_is_in_every_text_and_told(sdxl_catalog: Catalog) -> None:
    style = STYLES["Film Noir"]
    made = plan_of(sdxl_catalog, style_preset="Film Noir", prompt_2="oil", negative_prompt="fog")
    told = effective(made)
    assert (told.prompt, told.prompt_2) == (style.applied("a red house"), style.applied("oil"))
    assert (told.negative_prompt, told.negative_prompt_2) == (style.negated("fog"),) * 2
    assert told.style_preset == "Film Noir"
    (text, *_) = made.prompts
    tokenizer = made.engine.tokenizers[text.engine]
    assert made.prompts[text].chunks == tokenizer.chunks(parse(style.applied("a red house")), 3).chunks


def test_a_style_alone_is_a_negative_prompt(sdxl_catalog: Catalog) -> None:
    made = plan_of(sdxl_catalog, style_preset="anime")
    assert made.negated
    assert made.negative_prompt == STYLES["anime"].negative_prompt
    assert not plan_of(sdxl_catalog).negated


def test_brackets_weigh_within_a_style(sdxl_catalog: Catalog) -> None:
    made = plan_of(sdxl_catalog, style_preset="anime", prompt="a (red:1.5) house")
    weights = next(iter(made.prompts.values())).chunks[0].weights
    assert sorted(set(weights)) == [1.0, 1.5]
    assert weights.count(1.5) == 1


def test_an_unknown_style_is_refused_with_the_nearest_names(sdxl_catalog: Catalog) -> None:
    for given, meant in (
        ("film noire", "the nearest are Film Noir"),
        ("qqqq", "ListEngines and /openapi.json name all 78"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            plan_of(sdxl_catalog, style_preset=given)
        (violation,) = refused.value.violations
        assert violation.field == "style_preset"
        assert meant in violation.description
    with pytest.raises(InvalidRequest) as refused:
        plan_of(sdxl_catalog, style_preset="x" * 10_000)
    assert len(refused.value.violations[0].description) < 300


def test_what_no_chunk_holds_is_told_once_for_all_that_read_it(sdxl_catalog: Catalog) -> None:
    (notice,) = plan_of(sdxl_catalog, prompt=OVERLONG).notices
    assert notice.startswith("prompt is longer than sdxl_text_encoder and sdxl_text_encoder_2 can read (3 x 77 tokens)")
    assert notice.endswith("and a lighthouse'")
    assert plan_of(sdxl_catalog, prompt=LONG).notices == ()


def test_a_negative_text_that_no_guidance_uses_is_told_of_once(sdxl_catalog: Catalog) -> None:
    (notice,) = plan_of(sdxl_catalog, negative_prompt=OVERLONG, cfg_scale=1.0).notices
    assert "was not used" in notice
    assert len(plan_of(sdxl_catalog, negative_prompt=OVERLONG).notices) == 1


def test_a_weight_out_of_range_is_told(sdxl_catalog: Catalog) -> None:
    (notice,) = plan_of(sdxl_catalog, prompt="a (red:99) house").notices
    assert notice == "prompt has weights outside -10..10; the nearest of these was used"


CAT = Inversion("<cat>", {"text_encoder": np.ones((2, 6), np.float32), "text_encoder_2": np.ones((1, 10), np.float32)})
FOX = Inversion("fox", {"text_encoder": np.full((3, 6), 2, np.float32)})
LUIS = Transfer("luis", np.zeros((3, 3, 2, 2), np.float32))
ANNA = Transfer("anna", np.zeros((1, 3, 2, 2), np.float32))


def reading(
    catalog: Catalog,
    prompt: str,
    negative_prompt: str = "",
    prompt_2: str | None = None,
    inversions: Sequence[Inversion] = (),
    transfers: Sequence[Transfer] = (),
) -> Reading:
    """As SSD-1B reads it: SDXL without a refiner."""
    engine = catalog["ssd"]
    wording = Wording(prompt, prompt_2 or prompt, negative_prompt, negative_prompt)
    return read_texts(wording, engine.family.texts(engine.card), engine.tokenizers, inversions, transfers)


def words(catalog: Catalog, text: str) -> tuple[int, ...]:
    """The ids of a text, one a word here, between start and end."""
    (prompt, _) = reading(catalog, text).prompts.values()
    found = prompt.chunks[0].ids
    return found[1 : found.index(prompt.empty.ids[1])]


def test_a_concept_is_as_many_ids_as_an_engine_has_vectors_for_it(sdxl_catalog: Catalog) -> None:
    a, red, house = words(sdxl_catalog, "a red house")
    found = reading(sdxl_catalog, "a <cat> house", "red <cat>", inversions=[FOX, CAT])
    first, second = (prompt.chunks[0].ids for prompt in found.prompts.values())
    assert first[1:5] == (a, -4, -5, house)
    assert second[1:4] == (a, -1, house)
    first, second = (prompt.chunks[0].ids for prompt in found.negative_prompts.values())
    assert (first[1:4], second[1:3]) == ((red, -4, -5), (red, -1))
    vectors = {engine: table.tolist() for engine, table in found.vectors.items()}
    assert vectors == {"ssd_text_encoder": [[2] * 6] * 3 + [[1] * 6] * 2, "ssd_text_encoder_2": [[1] * 10]}


def test_a_word_that_an_engine_has_no_vectors_for_is_a_word_to_it(sdxl_catalog: Catalog) -> None:
    first, second = (prompt.chunks[0].ids for prompt in reading(sdxl_catalog, "fox", inversions=[FOX]).prompts.values())
    assert first[1:4] == (-1, -2, -3)
    assert min(second) >= 0


def test_a_weight_around_a_trigger_word_is_that_of_all_its_ids(sdxl_catalog: Catalog) -> None:
    found = reading(sdxl_catalog, "a (<cat>:1.3) house", inversions=[CAT])
    weights = next(iter(found.prompts.values())).chunks[0].weights
    assert weights[:6] == (1.0, 1.0, 1.3, 1.3, 1.0, 1.0)


def test_a_trigger_word_that_no_text_has_is_told(sdxl_catalog: Catalog) -> None:
    found = reading(sdxl_catalog, "a <cat>", "fox", inversions=[CAT, FOX, Inversion("owl", FOX.vectors)])
    assert found.notices == ("textual_inversions: no text has the word 'owl', which therefore did nothing",)
    assert reading(sdxl_catalog, "a <cat>").vectors == {}


def test_transfer_images_are_a_token_each_and_the_prompt_itself_has_no_trigger_word(sdxl_catalog: Catalog) -> None:
    a, red, house = words(sdxl_catalog, "a red house")
    found = reading(sdxl_catalog, "a red luis house anna", "a luis", transfers=[ANNA, LUIS])
    for text, prompt in found.prompts.items():
        assert prompt.chunks[0].ids[1:4] == (a, red, house)
        assert prompt.chunks[0].ids[4] == prompt.empty.ids[1]
        marked = found.marked[text]
        assert marked.prompt.chunks[0].ids[1:6] == (a, red, red, red, house)
        assert marked.places == {0: 5, 1: 2, 2: 3, 3: 4}
    letters = words(sdxl_catalog, "a luis")
    for negative in found.negative_prompts.values():
        assert negative.chunks[0].ids[1 : 1 + len(letters)] == letters
    assert found.notices == ()
    assert reading(sdxl_catalog, "a red luis house").marked == {}


def test_each_text_has_its_own_places_for_the_pictures(sdxl_catalog: Catalog) -> None:
    found = reading(sdxl_catalog, "a red luis house", prompt_2="house luis", transfers=[LUIS])
    first, second = found.marked.values()
    assert (first.places, second.places) == ({0: 2, 1: 3, 2: 4}, {0: 1, 1: 2, 2: 3})


def test_the_token_before_a_trigger_word_may_be_a_concept(sdxl_catalog: Catalog) -> None:
    found = reading(sdxl_catalog, "a <cat> luis", inversions=[CAT], transfers=[LUIS])
    first, second = found.marked.values()
    assert first.prompt.chunks[0].ids[2:6] == (-1, -2, -2, -2)
    assert (first.places, second.places) == ({0: 3, 1: 4, 2: 5}, {0: 2, 1: 3, 2: 4})


def test_a_text_with_pictures_is_as_long_as_all_others(sdxl_catalog: Catalog) -> None:
    found = reading(sdxl_catalog, "red " * 74 + "house luis", "fog", transfers=[LUIS])
    every = (
        *found.prompts.values(),
        *found.negative_prompts.values(),
        *(each.prompt for each in found.marked.values()),
    )
    assert {len(prompt.chunks) for prompt in every} == {2}
    assert [each.places for each in found.marked.values()] == [{0: 78, 1: 79, 2: 80}] * 2


def test_pictures_that_no_chunk_holds_are_told_and_have_no_place(sdxl_catalog: Catalog) -> None:
    found = reading(sdxl_catalog, "red " * 223 + "house luis sun", transfers=[LUIS])
    assert [each.places for each in found.marked.values()] == [{0: 2 * 77 + 74, 1: 2 * 77 + 75}] * 2
    (notice,) = found.notices
    assert notice.endswith("not used was: 'luis sun'")
