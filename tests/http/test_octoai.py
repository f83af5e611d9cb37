"""The old client, octoai 1.11.0 from PyPI, unchanged: only the base URL is ours. It has methods of its own for three of
the seven routes, `infer` for any, and `infer_async` with polling.
"""

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import HANG_SECONDS, RunningService
from octoai.client import AsyncOctoAI, OctoAI
from octoai.core.api_error import ApiError
from octoai.environment import OctoAIEnvironment
from octoai.image_gen import UnprocessableEntityError
from octoai.util import to_file
from PIL import Image

TIMEOUT = 120.0  # a first call loads its engine
PROMPT = "a red house and a sailboat at sunset"


@pytest.fixture(scope="module")
def url(service: RunningService) -> str:
    return f"http://{service.http_address}"


@pytest.fixture(scope="module")
def environment(url: str) -> OctoAIEnvironment:
    return OctoAIEnvironment(default=url, image_gen=url, text_gen=url)


@pytest.fixture(scope="module")
def client(environment: OctoAIEnvironment) -> Iterator[OctoAI]:
    made = OctoAI(environment=environment, api_key="any", timeout=TIMEOUT)
    yield made
    made._httpx_client.httpx_client.close()  # it has no word for that of its own


def size(image_b64: str | None) -> tuple[int, int]:
    assert image_b64 is not None
    return Image.open(io.BytesIO(base64.b64decode(image_b64))).size


@pytest.mark.parametrize(
    ("route", "wanted"),
    [("sd", (384, 704)), ("sdxl", (640, 1536)), ("ssd", (640, 1536)), ("sd3", (640, 1536))],
)
def test_every_plain_route_draws_by_the_general_call(
    client: OctoAI, url: str, route: str, wanted: tuple[int, int]
) -> None:
    body = {"prompt": PROMPT, "steps": 1, "width": wanted[0], "height": wanted[1], "seed": [7]}
    reply = client.infer(f"{url}/generate/{route}", body)
    assert [(image["seed"], size(image["image_b64"])) for image in reply["images"]] == [(7, wanted)]
    assert reply["prediction_time_ms"] > 0


def test_sdxl_draws_by_its_own_method_with_all_that_it_sends(client: OctoAI, tmp_path: Path) -> None:
    reply = client.image_gen.generate_sdxl(
        prompt=PROMPT,
        prompt2="watercolor",
        negative_prompt="people",
        negative_prompt2="text",
        cfg_scale=7.5,
        clip_skip=1,
        steps=2,
        width=640,
        height=1536,
        num_images=1,
        seed=7,
        sampler="K_EULER",
        image_encoding="png",
        style_preset="base",
        high_noise_frac=1.0,
        use_refiner=False,
        loras={},
        log_prompt=True,
        outpainting=False,
    )
    (image,) = reply.images
    assert (image.seed, image.removed_for_safety, image.safety_score) == (7, False, None)
    to_file(image, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_sd3_draws_by_its_own_method(client: OctoAI) -> None:
    reply = client.image_gen.generate_sd3(prompt=PROMPT, steps=2, width=640, height=1536, seed=7)
    assert size(reply.images[0].image_b64) == (640, 1536)


def test_a_picture_to_start_from_is_taken(client: OctoAI, url: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (384, 704), "blue").save(file, "PNG")
    body = {"prompt": PROMPT, "steps": 4, "strength": 0.5, "width": 384, "height": 704}
    picture = base64.b64encode(file.getvalue()).decode()
    reply = client.infer(f"{url}/generate/sd", body | {"init_image": picture})
    assert size(reply["images"][0]["image_b64"]) == (384, 704)


def test_what_is_not_built_yet_is_refused_by_name(client: OctoAI, url: str) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        client.image_gen.generate_controlnet_sdxl(prompt=PROMPT, controlnet="canny", controlnet_image="aGk=")
    told = {wrong.loc[1]: wrong.msg for wrong in refused.value.body.detail}
    assert told["controlnet"] == "not available in this version; leave it out"
    for route, fields in (
        ("controlnet-sd15", {"controlnet": "canny", "controlnet_image": "aGk="}),
        ("ip-adapter-sdxl", {"ip_adapter_image": "aGk="}),
    ):
        with pytest.raises(httpx.HTTPStatusError) as error:
            client.infer(f"{url}/generate/{route}", {"prompt": PROMPT} | fields)
        assert error.value.response.status_code == 422
        assert {wrong["loc"][1] for wrong in error.value.response.json()["detail"]} == set(fields)


def test_mistakes_come_as_the_clients_own_error(client: OctoAI) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        client.image_gen.generate_sdxl(prompt=PROMPT, steps=500, width=1000, cfg_scale=0.0)
    assert {tuple(wrong.loc) for wrong in refused.value.body.detail} == {
        ("body", "steps"),
        ("body", "width"),
        ("body", "cfg_scale"),
    }
    with pytest.raises(ApiError) as missing:
        client.image_gen.generate_flux_dev(prompt=PROMPT)
    assert missing.value.status_code == 404


def test_an_asynchronous_request_is_polled_and_fetched(client: OctoAI, url: str) -> None:
    future = client.infer_async(f"{url}/generate/sd", {"prompt": PROMPT, "steps": 2, "width": 384, "height": 704})
    assert future.poll_url.startswith(url)
    end = time.monotonic() + HANG_SECONDS
    while not client.is_future_ready(future):
        assert time.monotonic() < end
        time.sleep(0.05)  # as callers do
    reply = client.get_future_result(future)
    assert reply is not None
    assert size(reply["images"][0]["image_b64"]) == (384, 704)


async def test_the_async_client_draws_too(environment: OctoAIEnvironment) -> None:
    client = AsyncOctoAI(environment=environment, api_key="any", timeout=TIMEOUT)
    reply = await client.image_gen.generate_sdxl(prompt=PROMPT, steps=2, width=640, height=1536)
    assert size(reply.images[0].image_b64) == (640, 1536)
    with pytest.raises(UnprocessableEntityError):
        await client.image_gen.generate_sd3(prompt=PROMPT, sampler="LCM")
    await client._client_wrapper.httpx_client.httpx_client.aclose()


def test_both_interfaces_draw_the_same_picture(client: OctoAI, url: str, service_address: str) -> None:
    from mediagen.client import Client
    from mediagen.v1 import image_pb2 as pb

    body = {"prompt": PROMPT, "steps": 2, "width": 384, "height": 704, "seed": 7, "image_encoding": "png"}
    reply = client.infer(f"{url}/generate/sd", body)
    fields = {key: value for key, value in body.items() if key != "image_encoding"}
    with Client(service_address) as grpc_client:
        request = pb.GenerateRequest(engine="sd15", image_encoding=pb.IMAGE_ENCODING_PNG, **fields)
        (image,) = grpc_client.generate(request).images
    assert base64.b64decode(reply["images"][0]["image_b64"]) == image.data
