"""The texts of a request in a plan: in a style, in equally many chunks, with every loss told."""

import pytest
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog
from server.plan import Plan
from server.prompts.styles import STYLES
from server.prompts.weights import parse
from server.request import plan
from server.rpc.image_service import effective
from server.violations import InvalidRequest

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
