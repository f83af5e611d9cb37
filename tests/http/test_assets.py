"""The asset library over JSON: the old client's way, ranges, two tenants, what is wrong told as everywhere."""

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from assets.conftest import BUDGET, files, looked_at
from conftest import HANG_SECONDS
from json_service import Served, listening
from octoai.asset_library.types.data import Data_Lora
from octoai.client import OctoAI
from octoai.environment import OctoAIEnvironment
from starlette.types import ASGIApp

from server.assets import uploads as uploading
from server.assets.asset import AssetState
from server.assets.faults import Incomplete, UploadRunning
from server.assets.library import Library
from server.assets.uploads import Upload, Uploads
from server.http.app import application
from server.http.assets import AssetRoutes

CONTENT = bytes(range(256)) * 40
SAID = {"size_bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
BOB = {"x-mediagen-tenant": "bob"}


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    """Empty."""
    made = Library(tmp_path / "assets", looked_at, BUDGET)
    yield made
    made.close()


@pytest.fixture
def app(served: Served, library: Library) -> Iterator[ASGIApp]:
    """The routes with those of the library."""
    uploads = Uploads(library)
    yield application(served.routes.facade, AssetRoutes(library, uploads))
    uploads.close()


@pytest.fixture
async def http(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """A caller, without a wire."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30) as client:
        yield client


async def describe(http: httpx.AsyncClient, name: str = "style", **keys: object) -> httpx.Response:
    return await http.post("/v1/assets", json={"name": name, "asset_type": "lora", **keys})


async def bring(http: httpx.AsyncClient, content: bytes, name: str, **keys: object) -> dict[str, object]:
    """The whole way."""
    described = (await describe(http, name, **keys)).json()
    await http.put(described["upload_url"], content=content)
    return (await http.post(f"/v1/assets/{described['asset']['id']}/complete-upload")).json()


async def test_an_asset_is_described_sent_completed_found_and_deleted(
    http: httpx.AsyncClient, library: Library
) -> None:
    described = await describe(http, **SAID, is_public=True, description="mine")
    assert described.status_code == 201
    asset, url = described.json()["asset"], described.json()["upload_url"]
    assert (asset["status"], asset["received_bytes"]) == ("ready_to_upload", 0)
    assert url == f"http://here/v1/assets/{asset['id']}/content"
    sent = await http.put(url, content=CONTENT)
    assert (sent.json()["asset"]["status"], sent.json()["asset"]["received_bytes"]) == ("uploading", len(CONTENT))
    done = (await http.post(f"/v1/assets/{asset['id']}/complete-upload", json={})).json()
    assert (done["error"], done["asset"]["status"], done["asset"]["engines"]) == (None, "ready", ["sd15"])
    again = (await http.post(f"/v1/assets/{asset['id']}/complete-upload")).json()
    assert again == done
    found = (await http.get("/v1/assets/style")).json()
    assert (found["asset"], found["upload_url"]) == (done["asset"], None)
    deleted = (await http.delete(f"/v1/assets/{asset['id']}")).json()
    assert (deleted["id"], deleted["status"]) == (asset["id"], "deleted")
    assert (await http.get("/v1/assets/style")).status_code == 404
    assert files(library) == []


async def test_a_cut_upload_goes_on_by_a_range(app: ASGIApp, library: Library) -> None:
    content = CONTENT * 300  # 3 MB: more than is held back before it is written

    async def half() -> AsyncIterator[bytes]:
        yield content[:2_000_000]
        async with asyncio.timeout(HANG_SECONDS):
            while library.received(library.get("default", "style")) == 0:  # noqa: ASYNC110  # it comes over a socket
                await asyncio.sleep(0.01)
        raise ConnectionError

    async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS) as http:
        described = (await describe(http, size_bytes=len(content))).json()
        with pytest.raises(ConnectionError):
            await http.put(described["upload_url"], content=half(), headers={"content-length": str(len(content))})
        async with asyncio.timeout(HANG_SECONDS):
            while library.is_uploading(described["asset"]["id"]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        left = (await http.get("/v1/assets/style")).json()["asset"]
        at = left["received_bytes"]
        assert left["status"] == "uploading"
        assert 1_000_000 < at <= 2_000_000
        rest = {"content-range": f"bytes {at}-{len(content) - 1}/{len(content)}"}
        assert (await http.put(described["upload_url"], content=content[at:], headers=rest)).status_code == 200
        done = (await http.post(f"/v1/assets/{left['id']}/complete-upload")).json()
        assert (done["asset"]["status"], done["asset"]["sha256"]) == ("ready", hashlib.sha256(content).hexdigest())


async def test_the_old_client_brings_finds_lists_and_deletes(app: ASGIApp) -> None:
    def all_of_it(url: str) -> None:
        client = OctoAI(environment=OctoAIEnvironment(default=url, image_gen=url, text_gen=url), api_key="any")
        library, data = client.asset_library, Data_Lora(engine="image/stable-diffusion-xl-v1-0", trigger_words=["neon"])
        made = library.create(asset_type="lora", data=data, name="neon", description="bright", is_public=True)
        assert made.asset.status == "ready_to_upload"
        library._transfer_file(made.transfer_api, made.asset.file_structure, io.BytesIO(b"sdxl neon"))
        assert library.complete_upload(made.asset.id).error is None
        found = library.get("neon").asset
        assert (found.status, found.is_public, found.data.engine) == ("ready", True, "image/stable-diffusion-xl-v1-0")
        listed = library.list(asset_type="lora", engine="image/stable-diffusion-xl-v1-0", limit=1, is_public=True)
        assert ([asset.id for asset in listed.data], listed.has_more, listed.total) == ([found.id], False, 1)
        assert library.delete(found.id).id == found.id
        assert library.list().data == []
        client._httpx_client.httpx_client.close()

    async with listening(app) as url:
        await asyncio.to_thread(all_of_it, url)


async def test_every_type_is_listed_in_words_that_the_old_client_reads(app: ASGIApp) -> None:
    def listed(url: str) -> set[str]:
        client = OctoAI(environment=OctoAIEnvironment(default=url, image_gen=url, text_gen=url), api_key="any")
        found = client.asset_library.list().data
        client._httpx_client.httpx_client.close()
        return {asset.asset_type for asset in found}

    types = {"checkpoint", "lora", "textual_inversion", "vae", "controlnet", "ip_adapter"}
    async with listening(app) as url, httpx.AsyncClient(base_url=url) as http:
        for type in types:
            await http.post("/v1/assets", json={"name": type, "asset_type": type})
        assert await asyncio.to_thread(listed, url) == types


async def test_what_is_deleted_while_its_last_byte_arrives_is_not_found(
    http: httpx.AsyncClient, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (await describe(http, **SAID)).json()["upload_url"]
    close = Upload.close

    def close_and_delete(upload: Upload) -> None:
        close(upload)
        library.delete("default", upload.id)

    monkeypatch.setattr(Upload, "close", close_and_delete)
    reply = await http.put(url, content=CONTENT)
    assert (reply.status_code, reply.json()["reason"]) == (404, "NO_SUCH_ASSET")


async def test_one_upload_too_many_is_told_when_to_retry(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = (await describe(http, **SAID)).json()
    id, url = described["asset"]["id"], described["upload_url"]
    monkeypatch.setattr(uploading, "UNDER_WAY", 0)
    for reply in (await http.put(url, content=CONTENT), await http.post(f"/v1/assets/{id}/complete-upload")):
        told = (reply.status_code, reply.json()["reason"], reply.headers["retry-after"])
        assert told == (429, "TOO_MANY_UPLOADS", "5")
    monkeypatch.setattr(uploading, "UNDER_WAY", 1)
    assert (await http.put(url, content=CONTENT)).status_code == 200
    assert (await http.post(f"/v1/assets/{id}/complete-upload")).json()["asset"]["status"] == "ready"


async def test_pictures_go_on_while_rows_are_written(http: httpx.AsyncClient, library: Library) -> None:
    described = (await describe(http, **SAID)).json()["asset"]
    held, free = threading.Event(), threading.Event()

    def hold() -> bool:
        with library.store.transaction():
            held.set()
            return free.wait(HANG_SECONDS)

    holding = asyncio.create_task(asyncio.to_thread(hold))
    await asyncio.to_thread(held.wait, HANG_SECONDS)
    uploads = Uploads(library)
    waiting = [
        asyncio.create_task(uploads.complete(described["id"])),
        asyncio.create_task(http.put(f"/v1/assets/{described['id']}/content", content=_unsized())),
    ]
    assert (await http.get("/healthz")).status_code == 200
    assert not any(task.done() for task in waiting)
    free.set()
    assert await holding  # nobody waited for its time to end
    with pytest.raises((Incomplete, UploadRunning)):
        await waiting[0]
    assert (await waiting[1]).status_code in (200, 400, 409)
    uploads.close()


async def _unsized() -> AsyncIterator[bytes]:
    yield CONTENT


async def test_what_is_refused_says_why_and_leaves_no_file(http: httpx.AsyncClient, library: Library) -> None:
    told = await bring(http, b"bad", "style")
    assert told["error"] == told["asset"]["status_details"] == "it is bad; send a good one"  # type: ignore[index]
    assert told["asset"]["status"] == "rejected"  # type: ignore[index]
    told = await bring(http, CONTENT[::-1], "other", **SAID)
    assert told["asset"]["status"] == "error"  # type: ignore[index]
    assert SAID["sha256"] in told["error"]  # type: ignore[operator]
    assert files(library) == []
    again = await http.post("/v1/assets/other/complete-upload")
    assert again.json() == told


async def test_bytes_at_the_wrong_place_or_of_the_wrong_length_are_told(http: httpx.AsyncClient) -> None:
    url = (await describe(http, **SAID)).json()["upload_url"]

    async def refused(content: bytes, given: str | None = None) -> tuple[int, str]:
        reply = await http.put(url, content=content, headers={} if given is None else {"content-range": given})
        return reply.status_code, reply.json()["reason"]

    assert await refused(CONTENT[5:], f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}") == (416, "WRONG_OFFSET")
    assert await refused(CONTENT[:5], "bytes 0-9/10240") == (400, "CONTENT_RANGE")
    for given in ("bytes 5-4/10", "bytes */10", "0-4/5", "bytes 0-4/" + "9" * 30, "bytes 0-5/5"):
        assert await refused(b"12345", given) == (400, "CONTENT_RANGE")
    assert await refused(b"12345") == (400, "BAD_UPLOAD")
    early = await http.post("/v1/assets/style/complete-upload")
    assert (early.status_code, early.json()["reason"]) == (409, "INCOMPLETE")


async def test_a_file_of_unknown_length_needs_one_before_its_bytes(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x"

    url = (await describe(http)).json()["upload_url"]
    reply = await http.put(url, content=endless())
    assert (reply.status_code, reply.json()["reason"]) == (411, "LENGTH_REQUIRED")
    much = await http.put(url, content=b"x", headers={"content-range": f"bytes 0-0/{BUDGET + 1}"})
    assert (much.status_code, much.json()["reason"]) == (507, "LIBRARY_FULL")


async def test_tenants_see_their_own_and_what_is_public(http: httpx.AsyncClient) -> None:
    await bring(http, b"1", "private")
    shared = (await bring(http, b"2", "shared", is_public=True))["asset"]
    listed = (await http.get("/v1/assets", headers=BOB)).json()
    assert [(asset["name"], asset["owned"]) for asset in listed["data"]] == [("shared", False)]
    assert (await http.delete("/v1/assets/shared", headers=BOB)).json()["reason"] == "NOT_OWNER"
    assert (await http.post(f"/v1/assets/{shared['id']}/complete-upload", headers=BOB)).status_code == 403  # type: ignore[index]
    hidden, nothing = [(await http.get(f"/v1/assets/{name}", headers=BOB)).json() for name in ("private", "nothing")]
    assert hidden["message"].replace("private", "nothing") == nothing["message"]
    wrong = await http.get("/v1/assets", headers={"x-mediagen-tenant": "../bob"})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["header", "x-mediagen-tenant"])


async def test_everything_wrong_with_a_description_is_told_at_once(http: httpx.AsyncClient) -> None:
    values = {"name": "../x", "size_bytes": 0, "sha256": "abc", "preprocessor": "canny", "url": "http://x/y"}
    reply = await describe(http, **values)  # type: ignore[arg-type]
    assert reply.status_code == 422
    assert {wrong["loc"][1] for wrong in reply.json()["detail"]} == values.keys()
    kinds = {"asset_type": "pickle", "is_public": 1, "size_bytes": "x", "foo": 1}
    reply = await http.post("/v1/assets", json=kinds)
    assert {wrong["loc"][1] for wrong in reply.json()["detail"]} == {*kinds, "name"}
    for body in (b"[]", b"{", b'{"name": "a", "asset_type": "lora", "skip_validation": true}'):
        reply = await http.post("/v1/assets", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 422
    assert (await http.get("/v1/assets")).json()["total"] == 0


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%00", "a%00b", "%2e%2e", "%ff", "https:%2f%2fx", "' OR 1"])
async def test_a_hostile_name_in_a_path_is_nothing(http: httpx.AsyncClient, library: Library, name: str) -> None:
    await bring(http, CONTENT, "style")
    before = files(library)
    for method, path in (("GET", ""), ("DELETE", ""), ("PUT", "/content"), ("POST", "/complete-upload")):
        reply = await http.request(method, f"/v1/assets/{name}{path}", content=b"")
        assert reply.status_code in (404, 405), (method, reply.text)
    assert files(library) == before


async def test_a_name_is_taken_once(http: httpx.AsyncClient) -> None:
    first = await describe(http, **SAID)
    assert (await describe(http, **SAID)).json()["asset"]["id"] == first.json()["asset"]["id"]
    await bring(http, CONTENT, "style", **SAID)
    reply = await describe(http, **SAID)
    assert (reply.status_code, reply.json()["reason"]) == (409, "NAME_TAKEN")


async def test_lists_are_filtered_and_paged(http: httpx.AsyncClient) -> None:
    for i in range(5):
        await bring(http, bytes([i]), f"a{i}")
    await bring(http, b"sdxl", "xl", is_public=True)

    async def names(query: str) -> list[str]:
        return [asset["name"] for asset in (await http.get(f"/v1/assets?{query}")).json()["data"]]

    assert await names("engine=ssd") == await names("is_public=true") == await names("family=sdxl") == ["xl"]
    assert await names("engine=image/stable-diffusion-xl-v1-0&engine=none") == ["xl"]
    assert await names("name_prefix=a&limit=2&offset=1") == ["a3", "a2"]
    assert await names("name=a1&asset_type=lora&asset_type=vae&owner=default") == ["a1"]
    assert await names("asset_type=vae") == []
    first = (await http.get("/v1/assets?limit=4")).json()
    assert (first["has_more"], first["total"]) == (True, 6)
    await http.delete("/v1/assets/a2")
    assert await names(f"limit=4&page_token={first['next_page_token']}") == ["a1", "a0"]
    ids = ",".join(asset["id"] for asset in first["data"][:2])
    assert await names(f"asset_ids={ids}") == ["xl", "a4"]
    wrong = await http.get("/v1/assets?limit=0&offset=-1&page_token=x&asset_type=file&is_public=2&foo=1")
    assert {told["loc"][1] for told in wrong.json()["detail"]} == {
        *("limit", "offset", "page_token", "asset_type", "is_public", "'foo'"),
    }


async def test_an_id_is_enough_to_send_and_not_to_see(http: httpx.AsyncClient, library: Library) -> None:
    described = (await describe(http, **SAID)).json()
    assert (await http.put(described["upload_url"], content=CONTENT, headers=BOB)).status_code == 200
    assert (await http.get(f"/v1/assets/{described['asset']['id']}", headers=BOB)).status_code == 404
    assert library.get("default", "style").state is AssetState.UPLOADING


async def test_the_document_has_the_routes(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert paths["/v1/assets"].keys() == {"get", "post"}
    assert paths["/v1/assets/{asset}/content"]["put"]["requestBody"]["content"].keys() == {"application/octet-stream"}
    assert (await http.get("/v1/assets/a/b")).json()["reason"] == "NO_SUCH_ROUTE"
