"""The old client, octoai 1.11.0 from PyPI, unchanged: only the base URL is ours. It has methods of its own for three of
the seven routes, `infer` for any, `infer_async` with polling, and the asset library's.

Of its three ways to bring a file, the address to put it at works; keys to somebody's S3 and addresses to fetch from are
not served. It knows checkpoints, LoRAs, inversions and VAEs: ControlNets and IP-Adapters come by another client.
"""

import base64
import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import HANG_SECONDS, ROOT, RunningService
from diffusers import ControlNetModel
from mediagen.client import Client
from mediagen.v1 import asset_pb2
from mediagen.v1 import image_pb2 as pb
from octoai.asset_library import UnprocessableEntityError as AssetUnprocessable
from octoai.asset_library.types.data import Data_Lora
from octoai.client import AsyncOctoAI, OctoAI
from octoai.core.api_error import ApiError
from octoai.environment import OctoAIEnvironment
from octoai.image_gen import UnprocessableEntityError
from octoai.uploading_asset_library import AssetNotReady, UploadingAssetLibraryClient
from octoai.util import to_file
from PIL import Image

from bench.loras import lora
from server.assets.asset import blob

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


def pixels(image_b64: str) -> np.ndarray:
    """height width 3, uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image_b64))).convert("RGB"))


def picture(width: int, height: int) -> str:
    """A file in base64: an edge down the middle."""
    made, file = Image.new("RGB", (width, height), "navy"), io.BytesIO()
    made.paste("orange", (width // 2, 0, width, height))
    made.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


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


def test_the_library_is_filled_listed_looked_into_and_emptied(
    client: OctoAI, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole way: described, put at the address that it is told, completed, waited for; then drawn with."""
    waiting = UploadingAssetLibraryClient.wait_for_ready
    monkeypatch.setattr(waiting, "__defaults__", (0.05, *waiting.__defaults__[1:]))  # seconds between its looks: 10
    library = client.asset_library
    part = lora(ROOT / "model_repository", tmp_path, "sd15", "text_encoder", 91)
    data = Data_Lora(engine="image/stable-diffusion-v1-5", trigger_words=["old"])
    asset = library.create_from_file(str(blob(tmp_path, part.sha256)), data=data, name="old-style", description="old")
    assert (asset.status, asset.name, asset.data.asset_type) == ("ready", "old-style", "lora")
    assert library.get("old-style").asset.id == library.get(asset.id).asset.id == asset.id
    assert asset.id in {one.id for one in library.list(asset_type="lora", limit=50).data}
    assert [one.id for one in library.list(name="old-style", asset_type="lora").data] == [asset.id]

    body = {"prompt": PROMPT, "steps": 1, "width": 384, "height": 704, "seed": 7, "image_encoding": "png"}
    plain, drawn, again = (
        client.infer(f"{url}/generate/sd", body | loras)["images"][0]["image_b64"]
        for loras in ({}, {"loras": {"old-style": 0.8}}, {"loras": {f"octoai:{asset.id}": 0.8}})
    )
    assert np.array_equal(pixels(drawn), pixels(again))
    assert not np.array_equal(pixels(drawn), pixels(plain))

    assert library.delete(asset.id).id == asset.id
    with pytest.raises(ApiError) as gone:
        library.get("old-style")
    assert gone.value.status_code == 404
    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.infer(f"{url}/generate/sd", body | {"loras": {"old-style": 0.8}})
    assert refused.value.response.status_code == 422


def test_a_file_that_is_no_asset_ends_as_rejected(client: OctoAI, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = UploadingAssetLibraryClient.wait_for_ready
    monkeypatch.setattr(waiting, "__defaults__", (0.05, *waiting.__defaults__[1:]))
    library, data = client.asset_library, Data_Lora(engine="image/stable-diffusion-v1-5")
    with pytest.raises(AssetNotReady, match="rejected"):
        library.create_from_file(io.BytesIO(b"\x80\x04\x95 a pickle"), data=data, name="old-pickle")
    library.delete(library.get("old-pickle").asset.id)


def test_what_would_be_fetched_from_elsewhere_is_refused(client: OctoAI) -> None:
    data = Data_Lora(engine="image/stable-diffusion-v1-5")
    for said, field in (({}, "transfer_api_type"), ({"transfer_api_type": "presigned-url"}, "url")):  # sts by default
        with pytest.raises(AssetUnprocessable) as refused:
            client.asset_library.create_from_url("http://127.0.0.1:1/x.safetensors", data=data, name="old-far", **said)
        assert [wrong.loc[-1] for wrong in refused.value.body.detail] == [field]


@pytest.fixture
def canny(service_address: str, tmp_path: Path) -> Iterator[str]:
    """The name of a ControlNet for SDXL, of random weights; its name says what its maps are made by."""
    config = ControlNetModel.load_config(ROOT / "demo" / "checkpoints" / "sdxl" / "controlnet")
    ControlNetModel.from_config(config).half().save_pretrained(tmp_path)
    content = tmp_path.joinpath("diffusion_pytorch_model.safetensors").read_bytes()
    described = asset_pb2.AssetDescription(
        name="old-canny",
        type=asset_pb2.ASSET_TYPE_CONTROLNET,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    with Client(service_address) as ours:
        pieces = (content[at : at + 2**20] for at in range(0, len(content), 2**20))
        assert "sdxl" in ours.upload(described, pieces, lambda count: None).engines
        yield "old-canny"
        ours.delete_asset("old-canny")


def test_sdxl_is_controlled_by_a_map_by_its_own_method(client: OctoAI, canny: str) -> None:
    """The map is made of the picture."""
    reply = client.image_gen.generate_controlnet_sdxl(
        prompt=PROMPT,
        controlnet=canny,
        controlnet_image=picture(640, 1536),
        controlnet_conditioning_scale=0.8,
        controlnet_early_stop=1.0,
        controlnet_preprocess=True,
        steps=1,
        cfg_scale=1.0,
        width=640,
        height=1536,
        seed=7,
        use_refiner=False,
    )
    assert size(reply.images[0].image_b64) == (640, 1536)


def test_sd15_is_controlled_by_a_map_by_the_general_call(client: OctoAI, url: str) -> None:
    body = {"prompt": PROMPT, "steps": 2, "cfg_scale": 1.0, "width": 384, "height": 704, "seed": 7}
    guided = {"controlnet": "canny-sd15", "controlnet_image": picture(384, 704)}
    weak, strong = (
        client.infer(f"{url}/generate/controlnet-sd15", body | guided | {"controlnet_conditioning_scale": scale})
        for scale in (0.0, 1.0)
    )
    first, second = (pixels(reply["images"][0]["image_b64"]) for reply in (weak, strong))
    assert first.shape == second.shape == (704, 384, 3)
    assert not np.array_equal(first, second)


def test_a_picture_is_a_prompt_by_the_general_call(client: OctoAI, url: str) -> None:
    body = {"prompt": PROMPT, "steps": 1, "cfg_scale": 1.0, "width": 640, "height": 1536, "use_refiner": False}
    told = {"ip_adapter_image": picture(300, 200), "ip_adapter_scale": 0.7, "ip_adapter_method": "style"}
    reply = client.infer(f"{url}/generate/ip-adapter-sdxl", body | told)
    assert size(reply["images"][0]["image_b64"]) == (640, 1536)


def test_what_guides_and_is_wrong_is_told_by_field(client: OctoAI, url: str) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        client.image_gen.generate_controlnet_sdxl(prompt=PROMPT, controlnet="none-such", controlnet_image="aGk=")
    told = {wrong.loc[1]: wrong.msg for wrong in refused.value.body.detail}
    assert told.keys() == {"controlnet", "controlnet_image"}
    assert "no ControlNet" in told["controlnet"]
    with pytest.raises(httpx.HTTPStatusError) as error:
        client.infer(f"{url}/generate/ip-adapter-sdxl", {"prompt": PROMPT, "ip_adapter_image": "aGk="})
    assert error.value.response.status_code == 422
    assert [wrong["loc"][1] for wrong in error.value.response.json()["detail"]] == ["ip_adapter_image"]


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
    body = {"prompt": PROMPT, "steps": 2, "width": 384, "height": 704, "seed": 7, "image_encoding": "png"}
    reply = client.infer(f"{url}/generate/sd", body)
    fields = {key: value for key, value in body.items() if key != "image_encoding"}
    with Client(service_address) as grpc_client:
        request = pb.GenerateRequest(engine="sd15", image_encoding=pb.IMAGE_ENCODING_PNG, **fields)
        (image,) = grpc_client.generate(request).images
    assert base64.b64decode(reply["images"][0]["image_b64"]) == image.data
