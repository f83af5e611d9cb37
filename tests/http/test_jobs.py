"""Asynchronous requests: submitted, asked for, fetched, given up, forgotten."""

import asyncio
import base64
import io
import tracemalloc

import httpx
import pytest
from conftest import HANG_SECONDS, hold_a_step, steps_after_release
from json_service import Served
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from server.catalog import Catalog
from server.engines.port import EngineUnavailable
from server.http import facade, jobs
from server.http.replies import Answer
from server.plan import Plan
from server.request import plan
from server.rpc.reader import Reader

SHORT = {"prompt": "a red house", "steps": 1, "width": 384, "height": 704, "seed": 7}
LONG = SHORT | {"steps": 200}


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def submit(served: Served, body: dict[str, object]) -> httpx.Response:
    return await served.http.post("/generate/sd", json=body, headers={"X-OctoAI-Async": "1"})


async def submitted(served: Served, body: dict[str, object]) -> str:
    """The URL to ask."""
    reply = await submit(served, body)
    assert reply.status_code == 202, reply.text
    assert reply.json().keys() == {"response_id", "poll_url"}
    url = str(reply.json()["poll_url"])
    assert url == f"http://here/v1/requests/{reply.json()['response_id']}" == reply.headers["location"]
    return url


async def state(served: Served, url: str) -> dict[str, object]:
    reply = await served.http.get(url)
    assert reply.status_code == 200
    found: dict[str, object] = reply.json()
    return found


async def finished(served: Served, url: str) -> dict[str, object]:
    async with asyncio.timeout(HANG_SECONDS):
        while (found := await state(served, url))["status"] in ("pending", "running"):  # noqa: ASYNC110  # as callers do
            await asyncio.sleep(0.01)
    return found


async def test_an_answer_is_fetched_as_often_as_one_likes_and_is_that_of_the_request_itself(served: Served) -> None:
    url = await submitted(served, SHORT)
    found = await finished(served, url)
    assert (found["status"], found["response_url"]) == ("completed", f"{url}/response")
    replies = [(await served.http.get(f"{url}/response")).json() for _ in range(2)]
    direct = (await served.http.post("/generate/sd", json=SHORT)).json()
    assert [reply["images"] for reply in replies] == [direct["images"]] * 2


async def test_work_under_way_is_running_and_has_no_answer_yet(served: Served) -> None:
    url = await submitted(served, LONG)
    await hold_a_step(served.engines, served.unet)
    assert (await state(served, url))["status"] == "running"
    early = await served.http.get(f"{url}/response")
    assert (early.status_code, early.json()["status"]) == (202, "running")
    served.engines.go.set()
    assert (await finished(served, url))["status"] == "completed"


async def test_a_request_that_finds_the_service_full_waits_for_its_turn_and_is_read_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[pb.GenerateRequest] = []
    plan = Reader.plan

    async def counted(reader: Reader, request: pb.GenerateRequest) -> Plan:
        read.append(request)
        return await plan(reader, request)

    monkeypatch.setattr(Reader, "plan", counted)
    held = [await submitted(served, LONG) for _ in range(2)]
    await hold_a_step(served.engines, served.unet)
    async with asyncio.timeout(HANG_SECONDS):
        while served.admission.inside < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    waiting = await submitted(served, SHORT | {"init_image": picture()})
    async with asyncio.timeout(HANG_SECONDS):
        while (await state(served, waiting))["status"] != "pending":  # noqa: ASYNC110
            await asyncio.sleep(0)
    served.engines.go.set()
    assert (await finished(served, waiting))["status"] == "completed"
    assert [(await finished(served, url))["status"] for url in held] == ["completed"] * 2
    assert len(read) == 3


async def test_a_waiting_request_counts_by_the_pictures_it_holds(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_BYTES", facade.PLAN_BYTES + 400_000)
    assert (await submit(served, SHORT | {"init_image": picture()})).status_code == 429  # 704 x 384 x 3 bytes
    assert (await submit(served, SHORT)).status_code == 202


async def test_a_failure_is_told_with_the_answer_that_the_request_would_have_got(served: Served) -> None:
    served.engines.fail(served.unet.name, EngineUnavailable("gone"))
    url = await submitted(served, SHORT)
    found = await finished(served, url)
    assert found["status"] == "failed"
    assert found["error"] == {"message": "gone", "reason": "ENGINE_UNAVAILABLE"}
    reply = await served.http.get(f"{url}/response")
    assert (reply.status_code, reply.json(), reply.headers["retry-after"]) == (503, found["error"], "2")


@pytest.mark.parametrize(("error", "status"), [(MemoryError("no room"), 500), (asyncio.CancelledError(), 503)])
async def test_work_that_ends_in_no_answer_fails_and_gives_its_place_back(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException, status: int
) -> None:
    def written(reply: object) -> Answer:
        raise error

    monkeypatch.setattr(facade, "of_pictures", written)
    monkeypatch.setattr(jobs, "MAX_UNFINISHED", 1)
    reply = await served.http.post(
        "/generate/sd", json=SHORT, headers={"X-OctoAI-Async": "1", "x-request-id": "mine-2"}
    )
    found = await finished(served, reply.json()["poll_url"])
    assert found["status"] == "failed"
    assert (await served.http.get(f"{reply.json()['poll_url']}/response")).status_code == status
    assert "request mine-2" in caplog.text
    assert (await submit(served, SHORT)).status_code == 202


async def test_what_cannot_be_drawn_is_told_at_once(served: Served) -> None:
    assert (await submit(served, SHORT | {"steps": 0})).status_code == 422
    assert (await submit(served, SHORT | {"steps": "x"})).status_code == 422
    assert (await submit(served, SHORT | {"prompt": "a gun"})).status_code == 400


async def test_a_request_that_is_deleted_stops_within_a_step_and_is_forgotten(served: Served) -> None:
    url = await submitted(served, LONG)
    await hold_a_step(served.engines, served.unet)
    assert (await served.http.delete(url)).status_code == 204
    assert served.admission.inside == 0
    assert await steps_after_release(served.engines, served.scheduler, served.unet) == 0
    for reply in (await served.http.get(url), await served.http.get(f"{url}/response"), await served.http.delete(url)):
        assert (reply.status_code, reply.json()["reason"]) == (404, "NO_SUCH_REQUEST")


async def test_a_table_full_of_unfinished_work_refuses_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_UNFINISHED", 1)
    url = await submitted(served, LONG)
    reply = await submit(served, SHORT)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
    await served.http.delete(url)
    assert (await submit(served, SHORT)).status_code == 202


async def test_requests_that_hold_too_much_memory_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_BYTES", 50)
    assert (await submit(served, SHORT)).status_code == 429


@pytest.mark.parametrize("character", ["x", "x ", "\u6f22", "\U0001f600", "(x:1.1)"])
def test_no_plan_of_texts_holds_more_than_is_counted_for_it(catalog: Catalog, character: str) -> None:
    fields = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
    length = 10_000 // len(character) - 1
    texts = {field: str(i) + character * length for i, field in enumerate(fields)}
    request = pb.GenerateRequest(engine="sdxl", num_images=16, **texts)
    plan(request, catalog)  # what is made once is made
    tracemalloc.start()
    what = plan(request, catalog)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert what.prompt == texts["prompt"]
    assert held < facade.PLAN_BYTES


@pytest.mark.parametrize(("name", "value"), [("MAX_JOBS", 2), ("MAX_BYTES", 50_000)])
async def test_the_oldest_answers_make_room(
    served: Served, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(facade, "PLAN_BYTES", 100)
    urls = []
    for _ in range(3):
        urls.append(await submitted(served, SHORT | {"image_encoding": "png"}))
        await finished(served, urls[-1])
        if len(urls) == 1:
            size = len((await served.http.get(f"{urls[0]}/response")).content)
            monkeypatch.setattr(jobs, name, value if name == "MAX_JOBS" else 2 * size + 500)
    assert [(await served.http.get(url)).status_code for url in urls] == [404, 200, 200]


async def test_an_answer_is_kept_for_its_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await submitted(served, SHORT)
    await finished(served, url)
    monkeypatch.setattr(jobs, "KEPT_SECONDS", 0.0)
    assert (await served.http.get(url)).status_code == 404


async def test_a_service_that_stops_gives_up_what_nobody_can_fetch(served: Served) -> None:
    await submitted(served, LONG)
    await hold_a_step(served.engines, served.unet)
    await served.routes.facade.close()
    assert served.admission.inside == 0
