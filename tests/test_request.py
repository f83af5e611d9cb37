"""A request becomes a plan, or every violation at once."""

import json
import math
import time
from dataclasses import fields, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict
from mediagen.v1 import image_pb2 as pb
from PIL import Image as PillowImage

from server.canvas import FromNoise
from server.catalog import Catalog
from server.engines.port import Array
from server.families.base import Size
from server.families.sd15 import FAMILY
from server.pipeline import parameters
from server.plan import Plan
from server.prompts.weights import parse
from server.request import carries_pictures, plan
from server.sizes import nearest_size
from server.violations import InvalidRequest

SEED = 7


def violations_of(request: pb.GenerateRequest, catalog: Catalog) -> dict[str, str]:
    """By field, of which each has one."""
    with pytest.raises(InvalidRequest) as refused:
        plan(request, catalog)
    found = {violation.field: violation.description for violation in refused.value.violations}
    assert len(found) == len(refused.value.violations)
    return found


def test_an_empty_request_lacks_an_engine_and_a_prompt(catalog: Catalog) -> None:
    assert violations_of(pb.GenerateRequest(), catalog).keys() == {"engine", "prompt"}


def test_defaults_are_those_of_the_api(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    made = plan(request_message, catalog)
    assert (made.guidance_scale, made.steps, made.sampler.name, made.encoding.name) == (12.0, 30, "DDIM", "JPEG")
    assert (made.size, len(made.seeds), made.negative_prompt) == (Size(512, 512), 1, "")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("steps", 0, "1..200"),
        ("steps", 201, "1..200"),
        ("steps", -1, "1..200"),
        ("cfg_scale", math.nan, "above 0 and at most 50"),
        ("cfg_scale", math.inf, "above 0 and at most 50"),
        ("cfg_scale", 0.0, "above 0 and at most 50"),
        ("cfg_scale", 50.1, "above 0 and at most 50"),
        ("num_images", 0, "1..16"),
        ("num_images", 17, "1..16"),
        ("seed", -1, "0..4294967295"),
        ("seed", -(2**63), "-9223372036854775808 is not in 0..4294967295"),
        ("seed", 2**32, "0..4294967295"),
        ("prompt", "", "1 to 10,000 characters"),
        ("prompt", "x" * 10_001, "at most 10,000"),
        ("negative_prompt", "x" * 10_001, "at most 10,000"),
        ("engine", "sd16", "sd15"),
        ("width", 513, "the nearest is 512x512"),
        ("height", -512, "allowed are 512x512"),
        ("width", 0, "allowed are 512x512"),
        ("sampler", 99, "DDIM"),
        ("image_encoding", 9, "JPEG and PNG"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_is_allowed(
    catalog: Catalog, request_message: pb.GenerateRequest, field: str, value: Any, allowed: str
) -> None:
    setattr(request_message, field, value)
    found = violations_of(request_message, catalog)
    assert found.keys() == {field}
    assert allowed in found[field]


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 1), ("steps", 200), ("cfg_scale", 50.0), ("cfg_scale", 0.01), ("num_images", 16), ("seed", 0)],
)
def test_the_bounds_themselves_are_allowed(
    catalog: Catalog, request_message: pb.GenerateRequest, field: str, value: Any
) -> None:
    setattr(request_message, field, value)
    assert isinstance(plan(request_message, catalog), Plan)


def test_every_violation_is_told_at_once(catalog: Catalog) -> None:
    wrong = pb.GenerateRequest(
        engine="sd15", steps=0, cfg_scale=math.nan, width=1, num_images=99, vae="x", seeds=[pb.Seed(value=-1)]
    )
    assert violations_of(wrong, catalog).keys() == {
        "prompt", "steps", "cfg_scale", "width", "num_images", "vae", "seeds[0]",
    }  # fmt: skip


def test_what_an_engine_refuses_are_fields(catalog: Catalog, sdxl_catalog: Catalog) -> None:
    fields = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}
    assert all(engine.refuses <= fields for engine in (*catalog.values(), *sdxl_catalog.values()))


def test_of_one_field_one_thing_is_told(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.inpaint_full_res_padding, request_message.strength = -1, math.nan
    found = violations_of(request_message, catalog)
    assert found.keys() == {"inpaint_full_res_padding", "strength"}


def test_a_name_is_repeated_up_to_its_hundredth_character(catalog: Catalog) -> None:
    for name in ("x" * 5000, "\0" * 5000, "\U0010ffff" * 100):
        request = pb.GenerateRequest(engine=name, prompt="x")
        assert len(violations_of(request, catalog)["engine"]) < 200
    assert "no engine 'sd16'; " in violations_of(pb.GenerateRequest(engine="sd16", prompt="x"), catalog)["engine"]


def test_an_unknown_engine_hides_nothing_else(catalog: Catalog) -> None:
    wrong = pb.GenerateRequest(engine="sd16", prompt="x", steps=0, vae="x", loras={"neon": 1.0}, prompt_2="x")
    assert violations_of(wrong, catalog).keys() == {"engine", "steps"}  # some engine has the rest


def test_all_sizes_of_the_family_are_allowed_and_no_others(
    catalog: Catalog, request_message: pb.GenerateRequest
) -> None:
    assert len(FAMILY.sizes) == 25
    for size in FAMILY.sizes:
        request_message.width, request_message.height = size
        assert plan(request_message, catalog).size == size
        request_message.width += 64
        if (request_message.width, request_message.height) not in FAMILY.sizes:
            assert violations_of(request_message, catalog).keys() == {"width", "height"}


def test_one_side_alone_is_paired_with_the_default_of_the_other(
    catalog: Catalog, request_message: pb.GenerateRequest
) -> None:
    request_message.width = 768
    assert plan(request_message, catalog).size == Size(768, 512)


def test_the_nearest_size_needs_the_least_stretching() -> None:
    assert nearest_size(Size(520, 500), FAMILY.sizes) == Size(512, 512)
    assert nearest_size(Size(3000, 2000), FAMILY.sizes) == Size(1536, 1024)


def test_one_seed_counts_up_and_wraps(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.seed, request_message.num_images = 2**32 - 1, 3
    assert plan(request_message, catalog).seeds == (2**32 - 1, 0, 1)


def test_a_list_of_seeds_is_filled_up_at_random(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.num_images = 4
    request_message.seeds.extend((pb.Seed(value=0), pb.Seed(), pb.Seed(value=5)))
    first, second = plan(request_message, catalog).seeds, plan(request_message, catalog).seeds
    assert (first[0], first[2]) == (0, 5)
    assert (first[1], first[3]) != (second[1], second[3])


def test_more_seeds_than_pictures_are_refused_as_are_both_kinds_of_seed(
    catalog: Catalog, request_message: pb.GenerateRequest
) -> None:
    request_message.seeds.extend((pb.Seed(value=-1), pb.Seed(value=2)))
    assert violations_of(request_message, catalog) == {
        "seeds": "2 seeds, of which num_images allows 1; give at most one a picture",
        "seeds[0]": "-1 is not in 0..4294967295",
    }
    request_message.seed, request_message.num_images = SEED, 2
    assert violations_of(request_message, catalog) == {
        "seeds": "give either seed or seeds, not both",
        "seeds[0]": "-1 is not in 0..4294967295",
    }


def test_a_wrong_number_of_pictures_makes_no_list_of_seeds_wrong(
    catalog: Catalog, request_message: pb.GenerateRequest
) -> None:
    request_message.seeds.extend(pb.Seed(value=i) for i in range(16))
    for wrong in (0, 17, -(2**31)):
        request_message.num_images = wrong
        assert violations_of(request_message, catalog).keys() == {"num_images"}


MANY = 500_000


def test_a_list_far_too_long_is_refused_at_a_glance(catalog: Catalog) -> None:
    request = pb.GenerateRequest(engine="sd15", prompt="a red house")
    request.MergeFromString(b"\x62\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" * MANY)  # a Seed of -1 each
    assert len(request.seeds) == MANY
    assert request.seeds[MANY - 1].value == -1
    begin = time.process_time()
    assert violations_of(request, catalog) == {
        "seeds": "500000 seeds, of which num_images allows 1; give at most one a picture"
    }
    assert time.process_time() - begin < 0.2


@pytest.mark.parametrize("engine", ["sd15", "sd3", "sdxl"])
def test_maps_that_are_not_served_are_not_looked_into(catalog: Catalog, engine: str) -> None:
    request = pb.GenerateRequest(engine=engine, prompt="a red house")
    for i in range(100_000):
        request.loras[str(i)] = math.nan
        request.textual_inversions[str(i)] = str(i)
    for i in range(10_000):
        request.transfer_images[str(i)].images.extend([b"x"] * 10)
    begin = time.process_time()
    assert violations_of(request, catalog).keys() == {"loras", "textual_inversions", "transfer_images"}
    assert time.process_time() - begin < 0.2


def test_what_an_overlong_prompt_loses_is_told(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.prompt = "a red house " * 75 + "and a lighthouse"
    notices = plan(request_message, catalog).notices
    assert len(notices) == 1
    assert notices[0].startswith("prompt is longer")
    assert "and a lighthouse" in notices[0]


def test_both_texts_are_in_the_plan_as_tokens(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.negative_prompt = "a tree"
    made = plan(request_message, catalog)
    (tokenizer,) = made.engine.tokenizers.values()
    (text,) = made.prompts
    negative, positive = made.rows(text)
    assert positive.chunks == tokenizer.chunks(parse("a red house"), 3).chunks
    assert negative.chunks == tokenizer.chunks(parse("a tree"), 3).chunks
    assert negative != positive


NO_OPS: list[tuple[str, Any]] = [
    ("strength", 0.8),
    ("inpaint_full_res_padding", 32),
    ("controlnet_preprocess", True),
    ("controlnet_preprocess", False),
    ("controlnet_conditioning_scale", 1.0),
    ("high_noise_frac", 0.8),
    ("high_noise_frac", 1.0),  # without a refiner
    ("use_refiner", True),
    ("use_refiner", False),
    ("ip_adapter_method", pb.IP_ADAPTER_METHOD_FULL),
    ("ip_adapter_mode", pb.IP_ADAPTER_MODE_BASE),
    ("ip_adapter_scale", 1.0),
]


@pytest.mark.parametrize(("field", "value"), NO_OPS)
def test_a_value_that_asks_for_nothing_is_allowed_everywhere(
    catalog: Catalog, request_message: pb.GenerateRequest, field: str, value: Any
) -> None:
    setattr(request_message, field, value)
    assert isinstance(plan(request_message, catalog), Plan)


NOT_NOTHING: list[tuple[str, Any]] = [  # though some equal `False`
    ("clip_skip", 0),
    ("controlnet_early_stop", 0.0),
    ("controlnet_conditioning_scale", 0.0),
    ("ip_adapter_scale", 0.0),
]


@pytest.mark.parametrize("engine", ["sd15", "sd3", "sdxl", "ssd"])
@pytest.mark.parametrize(("field", "value"), NOT_NOTHING)
def test_a_number_that_is_not_the_default_asks_for_something_on_every_engine(
    catalog: Catalog, engine: str, field: str, value: Any
) -> None:
    request = pb.GenerateRequest(engine=engine, prompt="a red house")
    setattr(request, field, value)
    assert violations_of(request, catalog).keys() == {field}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.81])
def test_a_share_of_the_refiner_needs_the_refiner(sdxl_catalog: Catalog, share: float) -> None:
    request = pb.GenerateRequest(engine="sdxl", prompt="a red house", high_noise_frac=share, use_refiner=False)
    assert "without use_refiner" in violations_of(request, sdxl_catalog)["high_noise_frac"]
    for nothing in (0.8, 1.0):
        request.high_noise_frac = nothing
        assert plan(request, sdxl_catalog).high_noise_frac == 1.0


@pytest.mark.parametrize("field", ["negative_prompt", "negative_prompt_2"])
def test_a_negative_prompt_without_guidance_is_told_to_have_no_part(sdxl_catalog: Catalog, field: str) -> None:
    request = pb.GenerateRequest(engine="sdxl", prompt="a red house", cfg_scale=1.0)
    setattr(request, field, "a tree")
    assert plan(request, sdxl_catalog).notices == (
        f"{field} was not used: it has no part at a cfg_scale of 1 or below",
    )
    request.cfg_scale = 1.1
    assert plan(request, sdxl_catalog).notices == ()
    request.cfg_scale = 1.0
    setattr(request, field, "")
    assert plan(request, sdxl_catalog).notices == ()


@pytest.mark.parametrize(
    ("engine", "given", "judged_by"),
    [
        ("sd15", {"strength": 0.5}, {"strength": {"init_image"}}),
        ("sd15", {"strength": 7.0}, {"strength": set()}),  # wrong with a picture as well
        ("sd15", {"width": 1, "height": 1}, {"width": {"height"}, "height": {"width"}}),
        ("sd15", {"steps": 999, "clip_skip": 99}, {"steps": set(), "clip_skip": set()}),
        ("sd15", {"seeds": [{"value": 1}, {"value": -1}]}, {"seeds": {"num_images"}, "seeds[1]": set()}),
        ("sd15", {"controlnet_conditioning_scale": 7.0}, {"controlnet_conditioning_scale": {"controlnet"}}),
        ("sd15", {"controlnet_conditioning_scale": -1.0}, {"controlnet_conditioning_scale": set()}),
        ("sd3", {"controlnet_conditioning_scale": 7.0}, {"controlnet_conditioning_scale": set()}),  # it takes none
        ("sdxl", {"use_refiner": False, "high_noise_frac": 0.5}, {"high_noise_frac": {"use_refiner"}}),
        ("sdxl", {"use_refiner": False, "high_noise_frac": 7.0}, {"high_noise_frac": set()}),
    ],
)
def test_a_violation_says_which_other_fields_it_rests_on(
    catalog: Catalog,
    sdxl_catalog: Catalog,
    engine: str,
    given: dict[str, Any],
    judged_by: dict[str, set[str]],
) -> None:
    request = ParseDict({"engine": engine, "prompt": "a red house", **given}, pb.GenerateRequest())
    with pytest.raises(InvalidRequest) as refused:
        plan(request, {**catalog, **sdxl_catalog})
    assert {violation.field: violation.judged_by for violation in refused.value.violations} == judged_by


CHANGES: dict[str, Any] = {
    "engine": "other",
    "prompt": "a blue house",
    "negative_prompt": "a tree",
    "cfg_scale": 3.0,
    "steps": 9,
    "width": 768,
    "height": 768,
    "num_images": 2,
    "seed": SEED + 1,
    "sampler": pb.SAMPLER_K_EULER,
    "image_encoding": pb.IMAGE_ENCODING_PNG,
    "ip_adapter_method": pb.IP_ADAPTER_METHOD_STYLE,
    "ip_adapter_mode": 7,
    "style_preset": "anime",
    "use_refiner": True,
    "controlnet_preprocess": True,
}


def _change(request: pb.GenerateRequest, field: FieldDescriptor) -> None:
    """Set one field to something that asks for something."""
    if field.name in CHANGES:
        setattr(request, field.name, CHANGES[field.name])
    elif field.name == "loras":
        request.loras["x"] = 0.5
    elif field.name == "textual_inversions":
        request.textual_inversions["x"] = "y"
    elif field.name == "transfer_images":
        request.transfer_images["x"].images.append(b"y")
    elif field.name == "seeds":
        request.ClearField("seed")
        request.seeds.add(value=SEED + 2)
    else:
        values: dict[int, Any] = {
            FieldDescriptor.CPPTYPE_STRING: b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x",
            FieldDescriptor.CPPTYPE_DOUBLE: 0.25,
            FieldDescriptor.CPPTYPE_INT32: 3,
            FieldDescriptor.CPPTYPE_BOOL: True,
        }
        setattr(request, field.name, values[field.cpp_type])


# Their no-op is the only value that means anything without an adapter or a refiner: True is the documented default.
ALWAYS_NO_OPS = {
    "sd15": {"use_refiner", "controlnet_preprocess"},
    "sdxl": {"controlnet_preprocess"},
    "ssd": {"use_refiner", "controlnet_preprocess"},
    "sd3": {"use_refiner", "controlnet_preprocess"},
}


@pytest.mark.parametrize("engine", ALWAYS_NO_OPS)
@pytest.mark.parametrize("name", [field.name for field in pb.GenerateRequest.DESCRIPTOR.fields])
def test_changing_any_field_changes_the_plan_or_is_refused_by_name(
    catalog: Catalog, sdxl_catalog: Catalog, engine: str, name: str
) -> None:
    engines = {**catalog, **sdxl_catalog}
    request = pb.GenerateRequest(engine=engine, prompt="a red house", seed=SEED)
    before = plan(request, engines)
    _change(request, pb.GenerateRequest.DESCRIPTOR.fields_by_name[name])
    if engine == "sdxl" and name == "use_refiner":
        request.use_refiner = False
    try:
        after = plan(request, engines)
    except InvalidRequest as error:
        refused = {violation.field.partition("[")[0] for violation in error.violations}
    else:
        refused = set()
        assert (after != before) != (name in ALWAYS_NO_OPS[engine])
    assert refused <= {name}


def file_of(pixels: Array) -> bytes:
    file = BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def content(made: Plan) -> tuple[object, ...]:
    """A plan as comparable values: pictures by their bytes."""
    start = [getattr(made.start, field.name) for field in fields(made.start)]
    told = [value.tobytes() if isinstance(value, np.ndarray) else value for value in start]
    return (type(made.start), *told, replace(made, start=FromNoise()))


PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[20:30, 24:40] = 255
BESIDE = np.roll(MASK, 8, axis=1)
WITH_PICTURES: dict[str, Any] = {
    "init_image": file_of(PICTURE[::-1]),
    "strength": 0.5,
    "mask_image": file_of(BESIDE),
    "outpainting": True,
    "inpaint_full_res": False,
    "inpaint_full_res_padding": 8,
}


@pytest.mark.parametrize("engine", ["sd15", "sdxl"])
@pytest.mark.parametrize("name", WITH_PICTURES)
def test_beside_pictures_changing_a_field_of_theirs_changes_the_plan(
    catalog: Catalog, sdxl_catalog: Catalog, engine: str, name: str
) -> None:
    engines = {**catalog, **sdxl_catalog}
    request = pb.GenerateRequest(
        engine=engine,
        prompt="a red house",
        seed=SEED,
        init_image=file_of(PICTURE),
        mask_image=file_of(MASK),
        inpaint_full_res=True,
    )
    before = content(plan(request, engines))
    assert content(plan(request, engines)) == before
    setattr(request, name, WITH_PICTURES[name])
    assert content(plan(request, engines)) != before


@pytest.mark.parametrize(
    "name", ["strength", "mask_image", "outpainting", "inpaint_full_res", "inpaint_full_res_padding"]
)
def test_what_works_on_a_picture_is_refused_without_one(
    catalog: Catalog, request_message: pb.GenerateRequest, name: str
) -> None:
    setattr(request_message, name, {**WITH_PICTURES, "inpaint_full_res": True}[name])
    assert "leave it out" in violations_of(request_message, catalog)[name]


def test_files_that_are_no_pictures_are_told_by_field(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.init_image, request_message.mask_image = b"GIF89a", b"x"
    assert violations_of(request_message, catalog).keys() == {"init_image", "mask_image"}


def test_a_mask_without_white_is_told(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.init_image, request_message.mask_image = file_of(PICTURE), file_of(np.zeros((8, 8), np.uint8))
    assert violations_of(request_message, catalog).keys() == {"mask_image"}


@pytest.mark.parametrize(("steps", "strength", "walked"), [(30, 0.8, 24), (30, 1.0, 30), (10, 0.05, 1), (1, 0.8, 1)])
def test_strength_shortens_the_run_to_one_step_at_least(
    catalog: Catalog, request_message: pb.GenerateRequest, steps: int, strength: float, walked: int
) -> None:
    request_message.init_image = file_of(PICTURE)
    request_message.steps, request_message.strength = steps, strength
    assert len(plan(request_message, catalog).walked) == walked


@pytest.mark.parametrize(("given", "allowed"), [(0, "1..3"), (4, "1..3"), (-1, "1..3")])
def test_as_many_layers_may_be_skipped_as_leave_one(
    catalog: Catalog, request_message: pb.GenerateRequest, given: int, allowed: str
) -> None:
    request_message.clip_skip = given
    assert allowed in violations_of(request_message, catalog)["clip_skip"]


def test_a_file_tells_how_its_pictures_were_taken(catalog: Catalog, request_message: pb.GenerateRequest) -> None:
    request_message.MergeFrom(
        pb.GenerateRequest(
            init_image=file_of(PICTURE),
            mask_image=file_of(MASK),
            outpainting=True,
            inpaint_full_res=True,
            inpaint_full_res_padding=8,
            strength=0.5,
            seed=SEED,
        )
    )
    made = plan(request_message, catalog)
    again = ParseDict(json.loads(parameters(made, SEED)), pb.GenerateRequest())
    again.init_image, again.mask_image = request_message.init_image, request_message.mask_image
    assert content(plan(again, catalog)) == content(made)


def test_a_field_that_is_decoded_makes_a_request_one_with_pictures(request_message: pb.GenerateRequest) -> None:
    assert not carries_pictures(request_message)
    for field in ("init_image", "mask_image"):
        request = pb.GenerateRequest(**{field: b"x"})
        request.MergeFrom(request_message)
        assert carries_pictures(request), field
