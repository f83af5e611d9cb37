"""What SD3's transformer is told, what its engines take, and what a request may not ask of it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from mediagen.v1 import image_pb2 as pb
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from server.catalog import Catalog, read_catalog
from server.engines.port import Array, Spec, Tensors
from server.families.base import Stage
from server.families.sd3 import FAMILY, T5_TOKENS, Sd3Card, condition, text_encoders
from server.levels import FlowScheduler
from server.pipeline import Picture, generate, parameters
from server.request import plan
from server.samplers.flow_match_euler import FLOW_MATCH_EULER
from server.violations import InvalidRequest

CARD = Sd3Card(
    name="sd3",
    family="sd3",
    title="a test's",
    source="nowhere",
    latent_channels=16,
    pixels_per_latent=16,
    scheduler=FlowScheduler(num_train_timesteps=1000, shift=3.0),
    inpainting=False,
    safety_checker=False,
    text_width=3,
    text_2_width=4,
    pooled_width=5,
    pooled_2_width=6,
    joint_width=10,
    t5=True,
)
NO_T5 = replace(CARD, t5=False)
WORDS = ("<pad>", "a", "red", "blue", "house")


def catalog_of(card: Sd3Card, folder: Path) -> Catalog:
    """A model repository with the card and tokenizers, without engines."""
    (folder / "sd3.json").write_text(json.dumps(asdict(card)))
    for spec in text_encoders(card):
        words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
        words.pre_tokenizer = WhitespaceSplit()
        length = int(spec.inputs[0].shape[1])
        words.enable_truncation(length)
        words.enable_padding(length=length)
        (folder / spec.name).mkdir()
        words.save(str(folder / spec.name / "tokenizer.json"))
    return read_catalog(folder)


async def networks(spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
    """Text engines answer with their number and the first token of each row; a velocity of zero; grey."""
    spec.check(inputs)
    match spec.name:
        case "sd3_transformer":
            return {"prediction": np.zeros_like(inputs["sample"])}
        case "sd3_vae_decoder":
            rows, _, height, width = inputs["latents"].shape
            return {"pixels": np.full((rows, 16 * height, 16 * width, 3), 128, np.uint8)}
    number = 10 * {"sd3_text_encoder": 1, "sd3_text_encoder_2": 2, "sd3_text_encoder_3": 3}[spec.name]
    first = inputs["input_ids"][:, 0]
    ports = {port.name: (len(first), *port.shape[1:]) for port in spec.outputs}
    return {name: np.broadcast_to(_column(number + first, shape), shape) for name, shape in ports.items()}


def _column(values: Array, shape: tuple[int | str, ...]) -> Array:
    return values.astype(np.float32).reshape(-1, *(1 for _ in shape[1:]))


async def stage_of(card: Sd3Card, folder: Path, **fields: object) -> Stage:
    made = plan(pb.GenerateRequest(engine="sd3", prompt="house", **fields), catalog_of(card, folder))  # type: ignore[arg-type]
    (stage,) = await condition(made, card, networks)
    stage.networks[0].denoiser.check(
        {
            "sample": np.zeros((len(stage.networks[0].inputs["pooled_projections"]), 16, 64, 64), np.float32),
            "timestep": np.zeros(len(stage.networks[0].inputs["pooled_projections"]), np.float32),
            **stage.networks[0].inputs,
        }
    )
    return stage


async def test_clip_states_stand_side_by_side_padded_to_the_width_of_t5_which_follows(tmp_path: Path) -> None:
    stage = await stage_of(CARD, tmp_path, negative_prompt="red")
    states, pooled = stage.networks[0].inputs["encoder_hidden_states"], stage.networks[0].inputs["pooled_projections"]
    assert states.shape == (2, 77 + 256, 10)
    for row, word in enumerate((WORDS.index("red"), WORDS.index("house"))):
        clip = [10 + word] * 3 + [20 + word] * 4 + [0] * 3
        np.testing.assert_array_equal(states[row, :77], np.tile(np.float32(clip), (77, 1)))
        np.testing.assert_array_equal(states[row, 77:], np.full((256, 10), 30 + word, np.float32))
        assert pooled[row].tolist() == [10 + word] * 5 + [20 + word] * 6
    assert len(stage.steps) == 30


async def test_without_t5_there_are_as_many_zeros_in_its_place(tmp_path: Path) -> None:
    with_t5 = await stage_of(CARD, tmp_path)
    (tmp_path / "without").mkdir()
    without = await stage_of(NO_T5, tmp_path / "without")
    states = without.networks[0].inputs["encoder_hidden_states"]
    assert not states[:, 77:].any()
    assert states.shape == with_t5.networks[0].inputs["encoder_hidden_states"].shape
    np.testing.assert_array_equal(states[:, :77], with_t5.networks[0].inputs["encoder_hidden_states"][:, :77])


async def test_no_negative_prompt_is_an_empty_one_and_without_guidance_there_is_none(tmp_path: Path) -> None:
    absent = await stage_of(CARD, tmp_path)
    for folder in ("empty", "unguided"):
        (tmp_path / folder).mkdir()
    empty = await stage_of(CARD, tmp_path / "empty", negative_prompt="")
    for name, tensor in absent.networks[0].inputs.items():
        np.testing.assert_array_equal(tensor, empty.networks[0].inputs[name])
    unguided = await stage_of(CARD, tmp_path / "unguided", cfg_scale=1.0)
    for name, tensor in absent.networks[0].inputs.items():
        np.testing.assert_array_equal(tensor[1:], unguided.networks[0].inputs[name])


@pytest.mark.parametrize("card", [CARD, NO_T5])
async def test_a_request_goes_all_the_way_with_the_only_sampler_there_is(card: Sd3Card, tmp_path: Path) -> None:
    made = plan(pb.GenerateRequest(engine="sd3", prompt="a red house", steps=2, seed=1), catalog_of(card, tmp_path))
    assert made.sampler is FLOW_MATCH_EULER
    assert (made.size.width, made.size.height, made.guidance_scale) == (1024, 1024, 12.0)
    (picture,) = [event async for event in generate(made, networks) if isinstance(event, Picture)]
    assert picture.data.startswith(b"\xff\xd8")  # JPEG


def test_a_pictures_parameters_are_the_request_that_makes_it_again(tmp_path: Path) -> None:
    catalog = catalog_of(CARD, tmp_path)
    made = plan(pb.GenerateRequest(engine="sd3", prompt="a red house", negative_prompt="blue", seed=7), catalog)
    again = ParseDict(json.loads(parameters(made, 7)), pb.GenerateRequest())
    assert plan(again, catalog) == made


async def test_a_long_prompt_is_cut_for_clip_and_read_to_the_end_by_t5(tmp_path: Path) -> None:
    made = plan(pb.GenerateRequest(engine="sd3", prompt="red " * 80 + "house"), catalog_of(CARD, tmp_path))
    (notice,) = made.notices
    assert "sd3_text_encoder and sd3_text_encoder_2 can read (77 tokens)" in notice
    assert "_3" not in notice


REFUSED: Mapping[str, object] = {
    "checkpoint": "other",
    "clip_skip": 1,
    "controlnet": "canny",
    "controlnet_conditioning_scale": 0.5,
    "controlnet_early_stop": 0.5,
    "controlnet_image": b"x",
    "high_noise_frac": 0.5,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 3,
    "ip_adapter_image": b"x",
    "ip_adapter_mask_image": b"x",
    "ip_adapter_method": pb.IP_ADAPTER_METHOD_STYLE,
    "ip_adapter_mode": 7,
    "ip_adapter_scale": 0.5,
    "loras": {"x": 1.0},
    "mask_image": b"x",
    "negative_prompt_2": "x",
    "outpainting": True,
    "prompt_2": "x",
    "sampler": pb.SAMPLER_K_EULER,
    "style_preset": "anime",
    "textual_inversions": {"x": "y"},
    "transfer_images": {"x": pb.TransferImages(images=[b"x"])},
    "vae": "other",
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_it_does_not_have_is_refused_by_name(field: str, tmp_path: Path) -> None:
    fields = {field: REFUSED[field]}
    with pytest.raises(InvalidRequest) as refusal:
        plan(pb.GenerateRequest(engine="sd3", prompt="x", **fields), catalog_of(CARD, tmp_path))  # type: ignore[arg-type]
    assert [violation.field for violation in refusal.value.violations] == [field]
    assert "sd3 does not have it" in refusal.value.violations[0].description


def test_all_that_is_refused_is_looked_at_here() -> None:
    always_nothing = {"controlnet_preprocess", "use_refiner"}  # either value, without what they are about
    assert FAMILY.refuses(CARD) == REFUSED.keys() | always_nothing


def test_what_asks_for_nothing_is_accepted(tmp_path: Path) -> None:
    made = plan(
        pb.GenerateRequest(
            engine="sd3",
            prompt="x",
            sampler=pb.SAMPLER_DDIM,  # the documented default of every engine
            use_refiner=True,
            high_noise_frac=0.8,
            controlnet_preprocess=True,
            ip_adapter_scale=1.0,
            ip_adapter_method=pb.IP_ADAPTER_METHOD_FULL,
        ),
        catalog_of(CARD, tmp_path),
    )
    assert made.sampler is FLOW_MATCH_EULER


def test_sizes_are_those_of_the_api() -> None:
    published = "1536x640 768x1344 832x1216 1344x768 1152x896 640x1536 1216x832 896x1152 1024x1024"
    assert sorted(map(str, FAMILY.sizes)) == sorted(published.split())
    assert T5_TOKENS == 256
