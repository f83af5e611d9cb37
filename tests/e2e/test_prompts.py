"""What a prompt says besides words shows in the picture: negatives, weights, later chunks, skipped layers, styles."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from demo.probes import examine
from demo.scenes import Scene
from server.prompts.styles import STYLES

SEED = 1
PICTURES = 3  # of different seeds
CHANGED = 1.0  # of 255, mean over a picture: what a text must change at least
FEW = ("anime", "Film Noir", "Watercolor")
CLOUDS = Scene(
    "sea", "day", (), sun=False, moon=False, stars=False, clouds=True, mountains=False, seed=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def client(service_address: str) -> Iterator[Client]:
    with Client(service_address) as connected:
        yield connected


def drawn(client: Client, prompt: str, **fields: object) -> tuple[list[np.ndarray], pb.GenerateResponse]:
    """Pictures of SD 1.5, each h w 3, uint8, and the whole reply."""
    values = {"engine": "sd15", "seed": SEED, "steps": 8, "cfg_scale": 5.0, "image_encoding": pb.IMAGE_ENCODING_PNG}
    sampler = pb.SAMPLER_DPM_PLUS_PLUS_2M_KARRAS
    reply = client.generate(pb.GenerateRequest(**{**values, "prompt": prompt, "sampler": sampler, **fields}))
    pictures = [np.asarray(Image.open(BytesIO(image.data)).convert("RGB")) for image in reply.images]
    return pictures, reply


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over pixels, of 255."""
    return float(np.abs(one.astype(np.float32) - other).mean())


def pink(picture: np.ndarray) -> float:
    """The share of pixels that are pink: the demo's (248, 128, 176), brighter or paler."""
    red, green, blue = picture.astype(np.int32).transpose(2, 0, 1)
    return float(((red > blue + 25) & (blue > green + 10) & (red > 150)).mean())


def clouded(picture: np.ndarray) -> bool:
    """Whether the picture is nearer to the sea with clouds than to the sea without."""
    found, *_ = examine(picture, CLOUDS).extras
    missing, *_ = examine(picture, replace(CLOUDS, clouds=False)).extras
    assert found != missing
    return found


def test_a_negative_prompt_removes_what_it_names(client: Client) -> None:
    fields = {"cfg_scale": 12.0, "num_images": PICTURES}  # the API's default: below 7 clouds shrink and stay
    shown, _ = drawn(client, "the sea with clouds", **fields)
    removed, _ = drawn(client, "the sea with clouds", negative_prompt="white clouds, a cloudy sky", **fields)
    assert sum(map(clouded, shown)) > PICTURES / 2
    assert sum(map(clouded, removed)) < PICTURES / 2


def test_a_weight_strengthens_what_it_stands_at(client: Client) -> None:
    shares = []
    for weighted in ("(pink:0.5)", "pink", "(pink:1.5)"):
        pictures, _ = drawn(client, f"a {weighted} house", num_images=PICTURES)
        shares.append([pink(picture) for picture in pictures])
    weak, plain, strong = map(sum, shares)
    assert strong > 1.03 * plain, shares  # seen: 1.07; a weaker one than plain is 0.99
    assert strong > 1.05 * weak, shares


def test_text_beyond_the_first_77_tokens_is_read(client: Client) -> None:
    begin = "a red house in a meadow, " * 11  # 77 tokens and more
    (without,), _ = drawn(client, begin, steps=2)
    (with_end,), reply = drawn(client, begin + "at night", steps=2)
    assert not reply.notices
    assert difference(without, with_end) > CHANGED


def test_skipped_layers_change_the_picture(client: Client) -> None:
    (all_layers,), _ = drawn(client, "a red house", steps=2)
    (skipped,), reply = drawn(client, "a red house", steps=2, clip_skip=2)
    assert reply.effective.clip_skip == 2
    assert difference(all_layers, skipped) > CHANGED


@pytest.mark.parametrize("styles", [FEW, pytest.param(tuple(STYLES), marks=pytest.mark.thorough)], ids=["few", "all"])
def test_every_style_changes_the_picture(client: Client, styles: tuple[str, ...]) -> None:
    fields = {"engine": "sdxl", "steps": 2, "use_refiner": False}
    (plain,), _ = drawn(client, "a red house", **fields)
    pictures = {}
    for style in styles:
        (pictures[style],), reply = drawn(client, "a red house", style_preset=style, **fields)
        assert reply.effective.style_preset == style
        assert reply.effective.prompt == STYLES[style].applied("a red house")
        assert difference(plain, pictures[style]) > CHANGED, style
    assert len({picture.tobytes() for picture in pictures.values()}) == len(styles)


def test_styles_are_listed_where_they_are_served(client: Client) -> None:
    listed = {engine.name: list(engine.style_presets) for engine in client.engines()}
    assert listed["sdxl"] == listed["ssd"] == list(STYLES)
    assert listed["sd15"] == listed["sd3"] == []
