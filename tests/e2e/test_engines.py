"""Every engine's default checkpoint draws what it is told, at its own size, through the real Triton."""

from io import BytesIO

import numpy as np
import pytest
from e2e.test_picture import PROMPT, SCENE
from mediagen.client import Client
from mediagen.v1 import engine_pb2
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from demo.probes import examine

SEED = 7
STEPS = 20
GUIDANCE = 7.0


def drawn(client: Client, engine: str, prompt: str, **fields: object) -> np.ndarray:
    """A picture, h w 3, uint8."""
    request = pb.GenerateRequest(
        engine=engine, prompt=prompt, seed=SEED, steps=STEPS, cfg_scale=GUIDANCE,
        image_encoding=pb.IMAGE_ENCODING_PNG, **fields,
    )  # fmt: skip
    if engine != "sd3":
        request.sampler = pb.SAMPLER_DPM_PLUS_PLUS_2M_KARRAS
    reply = client.generate(request)
    return np.asarray(Image.open(BytesIO(reply.images[0].data)).convert("RGB"))


@pytest.mark.parametrize("engine", ["sdxl", "ssd", "sd3"])
def test_a_picture_shows_its_prompt_and_not_another(engine: str, service_address: str) -> None:
    with Client(service_address) as client:
        picture = drawn(client, engine, PROMPT)
        assert picture.shape == (1024, 1024, 3)
        facts = examine(picture, SCENE)
        assert facts.all, facts
        assert not examine(drawn(client, engine, PROMPT.replace("red", "blue")), SCENE).all


@pytest.mark.parametrize("engine", ["sdxl", "sd3"])
def test_every_size_comes_out_as_asked(engine: str, service_address: str) -> None:
    with Client(service_address) as client:
        (sizes,) = (found.sizes for found in client.engines() if found.name == engine)
        for size in sizes:
            request = pb.GenerateRequest(engine=engine, prompt=PROMPT, steps=2, width=size.width, height=size.height)
            (image,) = client.generate(request).images
            assert (image.width, image.height) == (size.width, size.height)
            assert Image.open(BytesIO(image.data)).size == (size.width, size.height)


def test_the_refiner_ends_what_the_base_begins(service_address: str) -> None:
    with Client(service_address) as client:
        whole, refined = (drawn(client, "sdxl", PROMPT, high_noise_frac=share) for share in (1.0, 0.8))
    assert examine(refined, SCENE).all
    apart = np.abs(refined.astype(np.float32) - whole).mean()
    assert 0.2 < apart < 8, "another end, and the same picture"


def test_without_a_refiner_is_what_a_share_of_1_is(service_address: str) -> None:
    with Client(service_address) as client:
        none, whole = (
            drawn(client, "sdxl", PROMPT, **fields) for fields in ({"use_refiner": False}, {"high_noise_frac": 1.0})
        )
    assert np.array_equal(none, whole)


def test_all_engines_are_listed_with_their_networks(service_address: str) -> None:
    with Client(service_address) as client:
        found = {engine.name: engine for engine in client.engines()}
    assert list(found) == ["sd15", "sd3", "sdxl", "ssd"]
    assert {name: engine.family for name, engine in found.items()} == {
        "sd15": "sd15", "sd3": "sd3", "sdxl": "sdxl", "ssd": "sdxl",
    }  # fmt: skip
    assert "sdxl_refiner" in found["sdxl"].models
    assert not any("refiner" in model for model in found["ssd"].models)
    for name in ("sdxl", "ssd", "sd3"):
        assert len(found[name].sizes) == 9
        assert found[name].state in (engine_pb2.ENGINE_STATE_READY, engine_pb2.ENGINE_STATE_UNLOADED)
    assert not found["sd3"].samplers, "it has no choice"
