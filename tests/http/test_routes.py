"""Bodies, statuses and replies of the JSON routes, over engines that a test holds and lets go."""

import asyncio
import base64
import io
import json

import httpx
import pytest
from conftest import HANG_SECONDS, hold_a_step, steps_after_release
from json_service import Hollow, Served
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from server.engines.port import EngineNoRoom, EngineTimeout, EngineUnavailable
from server.http.app import ROUTES
from server.http.models import ImageGenerationRequest
from server.http.replies import of_pictures
from server.http.translate import NO_DEMANDS, translate

SHORT = {"prompt": "a red house", "steps": 1, "width": 384, "height": 704}
LONG = SHORT | {"steps": 200}


def wrongs(reply: httpx.Response) -> dict[str, str]:
    """What is wrong, by the path of where."""
    assert reply.status_code == 422, reply.text
    return {".".join(map(str, wrong["loc"])): wrong["msg"] for wrong in reply.json()["detail"]}


async def post(served: Served, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await served.http.post(
        "/generate/sd", content=content, headers={"content-type": "application/json", **named}
    )


def picture(size: tuple[int, int] = (64, 64)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def test_a_prompt_alone_gives_a_picture(served: Served) -> None:
    reply = await post(served, SHORT)
    assert reply.status_code == 200
    (image,) = reply.json()["images"]
    assert (image["removed_for_safety"], image["safety_score"]) == (False, None)
    assert 0 <= image["seed"] < 2**32
    assert reply.json()["prediction_time_ms"] > 0
    assert reply.json()["notices"] == []
    assert Image.open(io.BytesIO(base64.b64decode(image["image_b64"], validate=True))).size == (384, 704)


async def test_a_list_of_seeds_gives_its_pictures_in_order_and_null_is_drawn(served: Served) -> None:
    reply = await post(served, SHORT | {"seed": [7, None, 4294967295], "num_images": 3, "image_encoding": "png"})
    images = reply.json()["images"]
    assert [images[0]["seed"], images[2]["seed"]] == [7, 4294967295]
    assert all(base64.b64decode(image["image_b64"]).startswith(b"\x89PNG") for image in images)


async def test_every_key_may_be_null_or_ask_for_nothing(served: Served) -> None:
    nothing = dict.fromkeys(ImageGenerationRequest.model_fields, None) | SHORT
    assert (await post(served, nothing)).status_code == 200
    no_ops = {"loras": {}, "textual_inversions": {}, "transfer_images": {}, "init_image": "", "checkpoint": ""}
    defaults = {"sampler": "DDIM", "strength": 0.8, "controlnet_preprocess": True, "ip_adapter_method": "full"}
    assert (await post(served, SHORT | no_ops | defaults | {"log_prompt": True, "cfg_scale": 12})).status_code == 200


def test_every_field_of_the_proto_has_its_key() -> None:
    fields = set(pb.GenerateRequest.DESCRIPTOR.fields_by_name) - {"engine", "seeds"}  # the route; a seed that is a list
    assert set(ImageGenerationRequest.model_fields) == fields | {"log_prompt"}


async def test_everything_wrong_is_told_at_once_the_types_and_the_values(served: Served) -> None:
    body = SHORT | {
        "steps": "many",
        "cfg_scale": 99,
        "seed": [1, -2, True],
        "num_images": 3,
        "width": 5,
        "sampler": "DDIM2",
        "loras": {"a": "b"},
        "init_image": "%",
        "foo": 1,
    }
    found = wrongs(await post(served, body))
    assert found.keys() == {
        "body.steps",
        "body.cfg_scale",
        "body.seed.2",
        "body.width",
        "body.height",
        "body.sampler",
        "body.loras.a",
        "body.init_image",
        "body.foo",
    }
    assert "given was 'many'" in found["body.steps"]
    assert "99 is not above 0 and at most 50" in found["body.cfg_scale"]
    assert "DPM_SINGLE" in found["body.sampler"]


async def test_a_seed_out_of_range_is_told_by_its_place_in_the_list(served: Served) -> None:
    found = wrongs(await post(served, SHORT | {"seed": [1, -2], "num_images": 2}))
    assert found.keys() == {"body.seed.1"}


async def test_a_mask_is_not_blamed_for_a_picture_that_cannot_be_read(served: Served) -> None:
    found = wrongs(await post(served, SHORT | {"init_image": "@@@", "mask_image": picture()}))
    assert found.keys() == {"body.init_image"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"num_images": "3", "seed": [1, 2, 3]}, {"num_images"}),
        ({"num_images": "3", "seed": [2**32]}, {"num_images", "seed.0"}),
        ({"seed": [1, "x", -1]}, {"seed.1"}),
        ({"width": "1216", "height": 832}, {"width"}),
        ({"width": 384, "height": "832"}, {"height"}),
        ({"width": 384, "height": "832", "cfg_scale": 0}, {"height", "cfg_scale"}),
        ({"inpaint_full_res": 1, "inpaint_full_res_padding": 8}, {"inpaint_full_res"}),
        ({"init_image": "@", "strength": 0.5, "mask_image": "", "steps": 0}, {"init_image", "steps"}),
        ({"mask_image": "@", "outpainting": True, "init_image": ""}, {"mask_image"}),
        ({"sampler": "LCN", "steps": 60}, {"sampler"}),
        ({"num_images": "3", "seed": [1, 2, 2**32]}, {"num_images", "seed.2"}),
        ({"engine": "sd15", "width": 1, "steps": 999, "clip_skip": 99}, {"engine", "width", "steps", "clip_skip"}),
        ({"init_image": 5, "strength": 7}, {"init_image", "strength"}),
        ({"init_image": 5, "mask_image": picture()[:20]}, {"init_image", "mask_image"}),
        ({"sampler": "nope", "steps": 999}, {"sampler", "steps"}),
        ({"num_images": "a", "seed": [1, -5]}, {"num_images", "seed.1"}),
        ({"inpaint_full_res": 1, "inpaint_full_res_padding": -1}, {"inpaint_full_res", "inpaint_full_res_padding"}),
    ],
)
async def test_what_is_judged_by_a_value_of_another_kind_is_not_blamed(
    served: Served, body: dict[str, object], told: set[str]
) -> None:
    found = wrongs(await post(served, {"prompt": "a red house", "steps": 1} | body))
    assert found.keys() == {f"body.{key}" for key in told}


async def test_a_refiner_of_another_kind_hides_no_share_that_nobody_may_ask_for(hollow_service: Hollow) -> None:
    async with httpx.AsyncClient() as client:
        for share, told in ((7, {"body.use_refiner", "body.high_noise_frac"}), (0.5, {"body.use_refiner"})):
            body = {"prompt": "a red house", "use_refiner": "no", "high_noise_frac": share}
            assert wrongs(await client.post(f"{hollow_service.url}/generate/sdxl", json=body)).keys() == told


async def test_without_a_prompt_that_is_what_is_said(served: Served) -> None:
    for body in ({}, {"prompt": None}, {"prompt": ""}):
        assert wrongs(await post(served, body)).keys() == {"body.prompt"}
    assert wrongs(await post(served, {"prompt": 5})).keys() == {"body.prompt"}


@pytest.mark.parametrize("value", [30, 30.0])
async def test_a_whole_number_is_one_however_it_is_written(served: Served, value: float) -> None:
    assert (await post(served, SHORT | {"steps": 1.0, "seed": value})).json()["images"][0]["seed"] == 30


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 30.5),
        ("steps", True),
        ("steps", 10**30),
        ("steps", 2**31),
        ("seed", 2**63),
        pytest.param("seed", -(10**4000), id="digits"),
        ("seed", 1.5),
        ("cfg_scale", "7"),
        pytest.param("cfg_scale", 10**400, id="too large for a float"),
        ("cfg_scale", False),
        ("prompt", "half of a pair: \ud800"),
        ("outpainting", 1),
        ("loras", ["a"]),
        ("loras", {"a": [1]}),
        ("transfer_images", {"luis": None}),
        ("init_image", 5),
        ("ip_adapter_mode", "plus"),
    ],
)
async def test_a_value_of_another_kind_is_named(served: Served, key: str, value: object) -> None:
    assert {where.split(".")[1] for where in wrongs(await post(served, SHORT | {key: value}))} == {key}


@pytest.mark.parametrize("key", ["[key]", "list", "one", "body", ""])
async def test_a_key_may_be_any_text(served: Served, key: str) -> None:
    maps = {"loras": {key: "x"}, "textual_inversions": {key: 1}, "transfer_images": {key: [5]}}
    detail = (await post(served, SHORT | {key: 1} | maps)).json()["detail"]
    assert [wrong["loc"] for wrong in detail] == [
        ["body", "loras", key],
        ["body", "textual_inversions", key],
        ["body", "transfer_images", key, 0],
        ["body", key],
    ]


async def test_null_in_a_map_is_the_weight_1_and_the_name_itself() -> None:
    body = b'{"loras": {"a": null, "b": -2}, "textual_inversions": {"c": null, "d": "e"}}'
    message = translate(body, "sd15", NO_DEMANDS).message
    assert dict(message.loras) == {"a": 1.0, "b": -2.0}
    assert dict(message.textual_inversions) == {"c": "c", "d": "e"}


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/png;charset=x;BASE64,", "data:;base64,"])
async def test_a_picture_may_have_a_data_prefix_and_line_ends(served: Served, prefix: str) -> None:
    wrapped = "\r\n".join(picture()[i : i + 76] for i in range(0, len(picture()), 76))
    for text in (picture(), wrapped):
        reply = await post(served, SHORT | {"init_image": prefix + text, "strength": 1.0})
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    "broken", ["a", "====", "iVBORw0KGgo", "iVBO*w0K", "iVBO w0K", "iVBORw0K=AAA", "data:image/png,x"]
)
async def test_broken_base64_is_told_as_that(served: Served, broken: str) -> None:
    assert wrongs(await post(served, SHORT | {"init_image": broken}))["body.init_image"].startswith("Not base64")


async def test_what_a_route_asks_for_is_missed_and_what_it_does_not_have_refused(served: Served) -> None:
    demanding = {route.path: route.demands for route in ROUTES if route.demands.required}
    assert demanding.keys() == {"/generate/controlnet-sd15", "/generate/controlnet-sdxl", "/generate/ip-adapter-sdxl"}
    found = wrongs(await served.http.post("/generate/controlnet-sd15", json=SHORT | {"controlnet": "canny"}))
    assert found["body.controlnet_image"] == "required on this route"
    body = SHORT | {"controlnet": 5, "controlnet_image": "@"}
    detail = (await served.http.post("/generate/controlnet-sd15", json=body)).json()["detail"]
    assert [wrong["loc"][1] for wrong in detail] == ["controlnet", "controlnet_image"]
    assert {wrong["type"] for wrong in detail} == {"string_type", "base64"}


async def test_an_engine_that_the_deployment_lacks_is_404(served: Served) -> None:
    reply = await served.http.post("/generate/sdxl", json=SHORT)
    assert (reply.status_code, reply.json()["reason"]) == (404, "NO_ENGINE")
    assert "has no engine sdxl; it has sd15" in reply.json()["message"]


async def test_a_blocked_prompt_is_400_with_a_message(served: Served) -> None:
    reply = await post(served, SHORT | {"prompt": "a gun"})
    assert (reply.status_code, reply.json()["reason"]) == (400, "PROMPT_BLOCKED")
    assert reply.json()["message"]


async def test_faults_of_engines_keep_their_meaning(served: Served) -> None:
    for fault, status, retry in (
        (EngineUnavailable("gone", retry_seconds=2.5), 503, "3"),
        (EngineNoRoom("full", retry_seconds=7), 429, "7"),
        (EngineTimeout("slow"), 504, None),
    ):
        served.engines.fail(served.unet.name, fault)
        reply = await post(served, SHORT)
        assert (reply.status_code, reply.headers.get("retry-after")) == (status, retry)
        assert reply.json()["message"] == str(fault)


async def test_a_bug_is_500_with_the_request_id_and_no_more(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.engines.fail(served.unet.name, ZeroDivisionError("secret"))  # type: ignore[arg-type]
    reply = await post(served, SHORT, x_request_id="mine-1")
    assert reply.status_code == 500
    assert "mine-1" in reply.json()["message"]
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] == "mine-1"
    assert "secret" in caplog.text


async def test_every_reply_has_a_request_id(served: Served) -> None:
    for path in ("/healthz", "/nowhere", "/openapi.json"):
        assert len((await served.http.get(path)).headers["x-request-id"]) == 32
    long = "x" * 300
    assert len((await served.http.get("/healthz", headers={"x-request-id": long})).headers["x-request-id"]) == 32


async def test_who_comes_when_all_permits_are_taken_is_told_when_to_retry(served: Served) -> None:
    held = [asyncio.create_task(post(served, LONG)) for _ in range(2)]
    await hold_a_step(served.engines, served.unet)
    async with asyncio.timeout(HANG_SECONDS):
        while served.admission.inside < 2:  # noqa: ASYNC110  # it comes over a socket, as no event of ours
            await asyncio.sleep(0.01)
    reply = await post(served, SHORT)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    served.engines.go.set()
    for task in held:
        assert (await task).status_code == 200


async def test_a_caller_who_leaves_costs_no_further_step(served: Served, on_a_port: str) -> None:
    async with httpx.AsyncClient() as client:
        call = asyncio.create_task(client.post(f"{on_a_port}/generate/sd", json=LONG))
        await hold_a_step(served.engines, served.unet)
        call.cancel()
    async with asyncio.timeout(HANG_SECONDS):
        while served.admission.inside > 0:  # noqa: ASYNC110  # that a caller has left comes over a socket
            await asyncio.sleep(0.01)
    assert await steps_after_release(served.engines, served.scheduler, served.unet) == 0


def test_a_picture_that_was_removed_is_null_and_says_so() -> None:
    removed = pb.Image(seed=7, safety_check=pb.SAFETY_CHECK_REMOVED, safety_score=0.75)
    passed = pb.Image(seed=8, data=b"file", safety_check=pb.SAFETY_CHECK_PASSED, safety_score=0.0)
    answer = of_pictures(pb.GenerateResponse(images=[removed, passed], notices=['a "cut"']))
    told = json.loads(answer.content)
    assert told["images"] == [
        {"image_b64": None, "removed_for_safety": True, "safety_score": 0.75, "seed": 7},
        {"image_b64": "ZmlsZQ==", "removed_for_safety": False, "safety_score": 0.0, "seed": 8},
    ]
    assert told["notices"] == ['a "cut"']


async def test_health_is_that_of_the_engines(served: Served) -> None:
    assert (await served.http.get("/healthz")).json() == {"status": "serving"}
    served.routes.health[0] = False
    reply = await served.http.get("/healthz")
    assert (reply.status_code, reply.json()) == (503, {"status": "not serving"})


async def test_a_path_or_method_that_is_not_there_is_told_as_the_rest(served: Served) -> None:
    assert (await served.http.get("/generate/svd")).json()["reason"] == "NO_SUCH_ROUTE"
    reply = await served.http.get("/generate/sd")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


async def test_the_page_to_try_it_needs_no_other_host(served: Served) -> None:
    page = await served.http.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    assert "//" not in page.text.replace("<!-- `SwaggerUIBundle` is now available on the page -->", "")
    for file in ("docs/swagger-ui-bundle.js", "docs/swagger-ui.css"):
        assert file in page.text
        assert len((await served.http.get(f"/{file}")).content) > 100_000
